"""Fully fused Triton kernels for Translution: projected queries, keys and values never leave the chip."""
