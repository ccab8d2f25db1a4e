"""Data sources: for each a config class and a class that yields batches."""
