"""Sphinx's settings: ``make docs`` builds the documentation and takes every warning for an error."""

import re
from importlib.metadata import version as version_of
from typing import Any

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


def from_trl_style(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings in the style of TRL, as napoleon reads them: headings among parameters, links, and code."""
    if not name.startswith("extensions.trl.MiniLLM"):
        return
    text = "\n".join(lines)
    text = re.sub(r"\[`~?([^`]+)`\]", lambda found: f"``{found[1].split('.')[-1]}``", text)
    text = re.sub(r"(?<![`:])`([^`\n]+)`(?!`)", r"``\1``", text)
    text = re.sub(r"^ +> (.+)$", r".. rubric:: \1\n\nParameters:", text, flags=re.MULTILINE)
    lines[:] = text.split("\n")


def setup(app: Any) -> None:
    """Sphinx calls this; napoleon comes after."""
    app.connect("autodoc-process-docstring", from_trl_style, priority=400)
