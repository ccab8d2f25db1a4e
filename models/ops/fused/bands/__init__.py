"""Kernels for shared entries: rows are multiplied once an entry, their pairs are attention inside its band."""
