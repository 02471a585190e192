"""The pictures of a report. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..comparison import PLAIN

Part = dict[str, Any]


def draw(parts: dict[str, Part], folder: Path) -> dict[str, str]:
    """A PNG for each part that can be seen.

    Returns:
        File names by part.
    """
    names = {}
    for name, part in parts.items():
        if name.split("/")[0] not in _DRAWN:
            continue
        figure = _DRAWN[name.split("/")[0]](part)
        names[name] = f"{name.replace('/', '-')}.png"
        figure.suptitle(name.replace("/", ": "))
        figure.savefig(folder / names[name], dpi=110)
    return names


def _panels(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2 * count, 4), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _length_axis(axes: Any, lengths: list[int]) -> None:
    """Logarithmic, with a mark at each length, or at some of many."""
    some = lengths[:: max(1, len(lengths) // 6)]
    axes.set_xscale("log")
    axes.set_xticks(some, [str(n) for n in some])
    axes.minorticks_off()
    axes.set_xlabel("n")


def _numbers(values: list[Any]) -> list[float]:
    return [float(x) for x in values]


def _gap(part: Part) -> Figure:
    figure, (left, middle, right) = _panels(3)
    lengths, reference = part["lengths"], part["reference"]
    left.plot(
        lengths, _numbers([row[-1] for row in part["gap"][reference]]), "k", label=f"gap in {reference}"
    )
    for i, (name, rounding) in enumerate(part["rounding"].items()):
        left.plot(lengths, _numbers([row[-1] for row in rounding]), f"C{i}:", label=f"rounding, {name}")
        middle.plot(lengths, _numbers([row[-1] for row in part["snr"][name]]), f"C{i}", label=name)
    middle.axhline(1, color="grey", linewidth=1)
    for i, n in enumerate(lengths):
        shade = 0.15 + 0.85 * i / max(1, len(lengths) - 1)
        gaps = _numbers(part["gap"][reference][i])
        right.plot(
            part["layers"],
            gaps,
            color="C0",
            alpha=shade,
            label=f"n = {n}" if i in (0, len(lengths) - 1) else None,
        )
    left.set(yscale="log", ylabel="L1, last layer", title="gap and rounding")
    middle.set(yscale="log", title="gap / rounding")
    for axes in (left, middle):
        _length_axis(axes, lengths)
    right.set(yscale="log", xlabel="layer", ylabel=f"L1, {reference}", title="gap by layer")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def _answers(part: Part) -> Figure:
    figure, (left, right) = _panels(2)
    lengths = part["lengths"]
    for i, (name, arm) in enumerate(part["arms"].items()):
        for style, dtype in zip(("-", "--", ":", "-."), arm["accuracy"], strict=False):
            label = f"{name}, {dtype}"
            left.plot(lengths, arm["accuracy"][dtype], style, color=f"C{i}", label=label)
            if style == "-" and name == PLAIN:
                left.fill_between(lengths, arm["low"][dtype], arm["high"][dtype], color=f"C{i}", alpha=0.1)
    left.axhline(part["chance"], color="grey", linewidth=1)
    left.set(ylim=(-0.03, 1.03), title="accuracy; 95% interval of plain; grey: chance")
    _length_axis(left, lengths)
    figure.legend(loc="outside lower left", fontsize=7, ncols=3)
    said = next(iter(part["said"].values()))[-1]
    most = list(said.items())[:12]
    right.barh(range(len(most)), [count for _, count in most])
    right.set_yticks(range(len(most)), [answer or "(nothing)" for answer, _ in most])
    right.invert_yaxis()
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(title=f"answers at n = {lengths[-1]}, without a remedy")
    left.grid(alpha=0.3)
    return figure


def _sensitivity(part: Part) -> Figure:
    figure, (axes,) = _panels(1)
    for name, label in (("full", "Jacobian"), ("frozen", "weights frozen"), ("path", "paths")):
        if name in part:
            axes.plot(part[name], label=label, linewidth=1)
    start, end = part["bearing"]
    axes.axvspan(start - 0.5, end - 0.5, color="C3", alpha=0.3, label="bears the answer")
    axes.set(yscale="log", xlabel="token", ylabel="share", title=f"n = {part['length']}")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _retrieval(part: Part) -> Figure:
    figure, (left, right) = _panels(2)
    for axes, key in ((left, "accuracy"), (right, "needle_share")):
        for i, n in enumerate(part["lengths"]):
            axes.plot(part["depths"], part[key][i], "o-", label=f"{n} pairs")
            if key == "accuracy":
                axes.fill_between(part["depths"], part["low"][i], part["high"][i], alpha=0.1)
        axes.set(xlabel="depth of the needle", title=key.replace("_", " "))
        axes.grid(alpha=0.3)
        axes.legend()
    left.set(ylim=(-0.03, 1.03), title="accuracy, 95% intervals")
    return figure


def _returns(part: Part) -> Figure:
    figure, (left, right) = _panels(2)
    for name in ("newest_token", "all_return_tokens", "state_token"):
        left.plot(part["contexts"], part[name], "o-", label=name.replace("_", " "))
    for name in ("shift_newest", "shift_all"):
        right.plot(part["contexts"], part[name], "o-", label=name.replace("_", " "))
    left.set(xlabel="steps in sight", title="share of the action's sensitivity", ylim=(0, None))
    right.set(xlabel="steps in sight", title="how far a standard deviation moves the action", ylim=(0, None))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def _tokens(part: Part) -> Figure:
    figure, (axes,) = _panels(1)
    roles = part["roles"]
    for i, role in enumerate(roles):
        axes.plot(part["full"][i :: len(roles)], "o-", label=role)
    axes.set(yscale="symlog", xlabel="step", ylabel="share", title=f"{part['context']} steps in sight")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


_DRAWN = {
    "gap": _gap,
    "answers": _answers,
    "sensitivity": _sensitivity,
    "retrieval": _retrieval,
    "returns": _returns,
    "tokens": _tokens,
}
