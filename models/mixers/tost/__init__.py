"""Token Statistics Transformer (arXiv 2412.17810)."""
