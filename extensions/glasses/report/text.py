"""A report in words and tables."""

from __future__ import annotations

from typing import Any


def markdown(report: dict[str, Any], pictures: dict[str, str]) -> str:
    """The text of ``report.md``.

    Args:
        report: as `GlassesReport.as_dict` makes it.
        pictures: file names by part.
    """
    model = report["model"]
    text = [f"# Glasses: {model['name'] or model['class']}"]
    text.append(
        f"{model['class']}, {model['parameters'] / 1e6:.3g} M parameters, {model['layers']} layers, "
        f"{model['dtype']} on {model['device']}; torch {report['torch']}."
    )
    text.append("## Verdicts")
    text.append("\n".join(f"- {line}" for line in report["verdicts"]))
    for name, part in report["parts"].items():
        text.append(f"## {name.replace('/', ': ')}")
        text.append(_TABLES[name.split("/")[0]](part))
        if name in pictures:
            text.append(f"![{name}]({pictures[name]})")
    return "\n\n".join(text) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _gap(part: dict[str, Any]) -> str:
    names = list(part["snr"])
    head = [
        "n",
        f"gap, L1, {part['reference']}",
        *(f"{x}: rounding" for x in names),
        *(f"SNR, {x}" for x in names),
    ]
    rows = [
        [
            str(n),
            _short(part["gap"][part["reference"]][i][-1]),
            *(_short(part["rounding"][x][i][-1]) for x in names),
            *(_short(part["snr"][x][i][-1]) for x in names),
        ]
        for i, n in enumerate(part["lengths"])
    ]
    return "Minimal pairs, last layer.\n\n" + _table(head, rows)


def _answers(part: dict[str, Any]) -> str:
    arms = part["arms"]
    cells = [(name, dtype) for name, arm in arms.items() for dtype in arm["accuracy"]]
    rows = [
        [
            f"{name}, {dtype}",
            *(
                f"{x:.2f} [{low:.2f}, {high:.2f}]"
                for x, low, high in zip(
                    *(arms[name][key][dtype] for key in ("accuracy", "low", "high")), strict=True
                )
            ),
        ]
        for name, dtype in cells
    ]
    said = "\n".join(
        f"- n = {n}: " + ", ".join(f"{answer!r} {count}" for answer, count in list(answers.items())[:5])
        for n, answers in zip(part["lengths"], next(iter(part["said"].values())), strict=True)
    )
    trials = (
        f"{_and(part['trials'])} distinct items at these lengths; accuracy with its 95% interval (Wilson)."
    )
    return (
        f"{trials}\n\n{_table(['remedy', *(f'n = {n}' for n in part['lengths'])], rows)}\n\n"
        f"What is said most, without a remedy:\n\n{said}"
    )


def _sensitivity(part: dict[str, Any]) -> str:
    n, tenth = part["tokens"], max(1, part["tokens"] // 10)
    rows = []
    for name in (x for x in ("full", "frozen", "path") if x in part):
        share = part[name]
        middle = share[int(0.4 * n) : max(int(0.4 * n) + 1, int(0.6 * n))]
        thirds = (sum(share[:tenth]), sum(middle), sum(share[-tenth:]))
        rows.append([name, *(f"{x:.1%}" for x in thirds)])
    head = ["share of", "the first tenth", "the middle fifth", "the last tenth"]
    return f"n = {part['length']}, {n} tokens.\n\n{_table(head, rows)}"


def _retrieval(part: dict[str, Any]) -> str:
    rows = [
        [
            str(n),
            *(f"{x:.2f} [{low:.2f}, {high:.2f}]" for x, low, high in zip(*cells, strict=True)),
        ]
        for n, *cells in zip(part["lengths"], part["accuracy"], part["low"], part["high"], strict=True)
    ]
    return (
        f"{part['trials']} items of each cell; rank correlation of margin and the needle's share of "
        f"sensitivity {_short(part['margin_follows_share'])}.\n\n"
        + _table(["pairs", *(f"depth {x:g}" for x in part["depths"])], rows)
    )


def _and(counts: list[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))


def _returns(part: dict[str, Any]) -> str:
    shares = ("newest_token", "all_return_tokens", "state_token")
    shifts = ("shift_newest", "shift_all")
    rows = [
        [str(k), *(f"{part[name][i]:.2%}" for name in shares), *(_short(part[name][i]) for name in shifts)]
        for i, k in enumerate(part["contexts"])
    ]
    head = [
        "steps in sight",
        "newest return",
        "all returns",
        "newest state",
        "newest one std up",
        "all one std up",
    ]
    return "Shares of the action's sensitivity, and how far the action moves.\n\n" + _table(head, rows)


def _return_gap(part: dict[str, Any]) -> str:
    names = list(part["snr"])
    rows = [
        [
            str(k),
            _short(part["gap"][i]),
            *(_short(part["rounding"][name][i]) for name in names),
            *(_short(part["snr"][name][i]) for name in names),
        ]
        for i, k in enumerate(part["contexts"])
    ]
    head = ["steps in sight", f"gap, L1, {part['reference']}", *(f"{x}: rounding" for x in names)]
    said = "Windows and the same with a newest return one standard deviation higher, last layer."
    return f"{said}\n\n{_table([*head, *(f'SNR, {x}' for x in names)], rows)}"


def _tokens(part: dict[str, Any]) -> str:
    rows = [[role, f"{share:.2%}"] for role, share in part["by_role"].items()]
    return f"{part['context']} steps in sight.\n\n" + _table(
        ["tokens", "share of the action's sensitivity"], rows
    )


def _behaviour(part: dict[str, Any]) -> str:
    return _table(["figure", ""], [[name, _short(value)] for name, value in part["figures"].items()])


def _short(x: Any) -> str:
    return f"{x:.3g}" if isinstance(x, float) else str(x)


_TABLES = {
    "gap": _gap,
    "answers": _answers,
    "sensitivity": _sensitivity,
    "retrieval": _retrieval,
    "returns": _returns,
    "return_gap": _return_gap,
    "tokens": _tokens,
    "behaviour": _behaviour,
}
