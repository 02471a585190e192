"""Claims of papers, run again; `python -m recipes.reproduce.NAME`."""
