"""The walk for variants with a dense part."""
