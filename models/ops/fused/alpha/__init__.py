"""α-Translution as few kernels: dense attention, and beside it a bilinear form per pair and head."""
