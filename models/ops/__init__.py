"""Translution's operator: `naive` is its definition, `streamed` computes it at scale."""
