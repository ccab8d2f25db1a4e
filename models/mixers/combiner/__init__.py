"""Combiner: full attention through summaries of segments (arXiv 2107.05768)."""
