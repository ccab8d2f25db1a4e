"""Cross-covariance image transformer (arXiv 2106.09681)."""
