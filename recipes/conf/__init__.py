"""Hydra's groups. A package, so that an installed recipe finds them."""
