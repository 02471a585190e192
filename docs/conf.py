"""Sphinx's settings: ``make docs`` builds the documentation and takes every warning for an error."""

from importlib.metadata import version as version_of

project = "rl-extensions"
author = "The rl-extensions authors"
copyright = "2026, the rl-extensions authors"
version = release = version_of("rl-extensions")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "alabaster"
html_theme_options = {
    "description": "StochDQN, AdEMAMix, and environments with many actions",
    "page_width": "1060px",
}
html_show_sourcelink = False

autodoc_typehints = "none"  # the docstrings name the types that matter
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # attributes in a class's own text, not as entries beside those that autodoc finds
