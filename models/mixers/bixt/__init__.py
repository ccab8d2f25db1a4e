"""Bi-directional cross-attention between tokens and latents (arXiv 2402.12138)."""
