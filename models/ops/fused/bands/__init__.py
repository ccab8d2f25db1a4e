"""Kernels for shared entries: rows are multiplied once an entry, pairs are attention in its band."""
