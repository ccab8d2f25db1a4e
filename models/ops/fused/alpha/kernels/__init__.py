"""Triton kernels of α-Translution: of the dense part, of token owners and of bank entry owners."""
