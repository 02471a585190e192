"""The pages keep their word: examples run, links lead somewhere, and the README's tree is the tree."""

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(language):
    """(page, line of the first line of the block, block) of every block in a language."""
    for page in PAGES:
        text = page.read_text()
        for found in FENCE.finditer(text):
            if found.group(1) == language:
                yield page, text.count("\n", 0, found.start(2)) + 1, found.group(2)


EXAMPLES = [
    pytest.param(page, line, code, id=f"{page.relative_to(ROOT)}:{line}")
    for page, line, code in blocks("python")
]


@pytest.fixture
def one_thread():
    """On a busy machine, threads of such small networks mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("page", "line", "code"), EXAMPLES)
def test_an_example_runs(page, line, code, tmp_path, monkeypatch, one_thread):
    if "Mujoco" in code:
        pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    # Empty lines before it, so that a traceback names the line of the page.
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), {"__name__": "__main__"})


def test_the_pages_that_must_have_examples_have_them():
    having = {param.values[0].relative_to(ROOT).as_posix() for param in EXAMPLES}
    pages = ("stoch_dqn", "stoch_dqn_torchrl", "tabular", "environments", "minillm")
    assert {"README.md", *(f"docs/{page}.md" for page in pages)} <= having


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    links = LINK.findall(FENCE.sub("", page.read_text()))
    targets = [link.split("#")[0] for link in links if not re.match(r"https?://|mailto:|#", link)]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def readme_tree():
    """The paths that the README's tree names; folders end with a slash."""
    (tree,) = [code for page, _, code in blocks("text") if page.name == "README.md"]
    above, paths = [], []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)  +\S", line).groups()
        above = [*above[: len(indent) // 2], name]
        paths.append("".join(above))
    return paths


def test_what_the_tree_names_is_there():
    missing = [
        path
        for path in readme_tree()
        if not (ROOT / path).exists() or path.endswith("/") != (ROOT / path).is_dir()
    ]
    assert not missing


def test_the_tree_names_every_folder():
    sources = [
        file
        for top in ("extensions", "envs", "recipes", "tests", "docs")
        for suffix in ("py", "yaml", "md", "png")
        for file in (ROOT / top).rglob(f"*.{suffix}")
        if "_build" not in file.parts
    ]
    folders = {f"{file.parent.relative_to(ROOT).as_posix()}/" for file in sources}
    assert not folders - set(readme_tree())


def test_docstrings_in_the_style_of_trl_are_read_as_such():
    lines = [
        "See [`~trl.DistillationConfig`] and `mode`.",
        "",
        "Parameters:",
        "    mode (`str`):",
        '        `"paper"` or ``other``; :class:`Objective`.',
        "",
        "    > Parameters that control the objective (see [`Objective`])",
        "",
        "    gamma (`float`):",
    ]
    hook = runpy.run_path(str(ROOT / "docs" / "conf.py"))["from_trl_style"]
    unchanged = [*lines]
    hook(None, "class", "extensions.sb3.StochDQN", None, None, unchanged)
    assert unchanged == lines
    hook(None, "class", "extensions.trl.MiniLLMConfig", None, None, lines)
    assert lines[0] == "See ``DistillationConfig`` and ``mode``."
    assert lines[4].strip() == '``"paper"`` or ``other``; :class:`Objective`.'
    assert lines[6:9] == [
        ".. rubric:: Parameters that control the objective (see ``Objective``)",
        "",
        "Parameters:",
    ]
    assert lines[-1] == "    gamma (``float``):"
