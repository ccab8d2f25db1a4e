"""Data sources: each a config class and a class that yields batches."""
