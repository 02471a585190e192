"""Timings: each ``python -m recipes.bench.NAME`` leaves its figures in ``docs/benchmarks``."""
