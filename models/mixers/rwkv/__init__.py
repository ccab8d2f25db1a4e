"""RWKV-4: attention as a recurrence with learned decay (arXiv 2305.13048)."""
