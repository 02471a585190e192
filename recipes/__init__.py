"""Command lines that run the methods on real work: ``python -m recipes.NAME``."""
