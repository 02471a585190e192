"""The page of :mod:`.glasses_trained`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from . import glasses_trained_plan as plan
from .action_scaling_page import table
from .glasses_questions import TASKS
from .glasses_trained_claims import FAR, claims, emphasised, separator_gaps
from .glasses_trained_picture import plot
from .glasses_trained_plan import ARMS, NAMES
from .glasses_trained_rows import (
    COLUMNS,
    Case,
    Row,
    all_cases,
    at,
    cases,
    curves,
    gain,
    n50s,
    ratio_of_means,
    rows_of,
)
from .intervals import ratio_of_medians
from .published import refuse_to_lose_rows, where_they_ran, write_results
from .training_runs import result

DOCS = Path("docs/benchmarks")
PACKAGES = ("torch", "numpy")
SHOWN = (32, 128, 512, 2048)  # digits, in the table of margins


def named(case: Case) -> list[str]:
    """The first cells of a row."""
    return [case[0], NAMES[case[1]], ARMS[case[2]].title]


def said(x: float, digits: int = 0) -> str:
    return "beyond" if np.isinf(x) else f"{x:,.{digits}f}"


def with_interval(found: tuple[float, float, float], digits: int = 0) -> str:
    """A figure and its interval; "beyond" is a length beyond all that were asked."""
    return f"{said(found[0], digits)} [{said(found[1], digits)}, {said(found[2], digits)}]"


def half_lengths(rows: list[Row], task: str) -> str:
    """n50 of every arm of a task, in both precisions, and what a remedy gains."""
    lines = []
    for case in all_cases():
        if case[0] != task:
            continue
        found, plain = n50s(rows, case), (task, case[1], "plain")
        if not found:
            lines.append([*named(case)[1:], "not run yet", "", "", "", ""])
            continue
        low = n50s(rows, case, "bfloat16")
        gains = ["", ""]
        if case != plain and n50s(rows, plain):
            gains = [with_interval(gain(rows, case, plain, tokens), 2) for tokens in (False, True)]
        lines.append(
            [
                *named(case)[1:],
                with_interval(ratio_of_medians(found, [1.0])),
                ", ".join(said(x) for x in found),
                with_interval(ratio_of_medians(low, [1.0])),
                *gains,
            ]
        )
    head = [
        "positions",
        "arm",
        "n50, float32",
        "each seed",
        "n50, bfloat16",
        "gain in digits",
        "gain in tokens",
    ]
    return table(head, lines)


def trainings(rows: list[Row]) -> str:
    """Whether training came to its end: the loss, and the answers within its lengths."""
    lines = []
    for case in cases(rows):
        if ARMS[case[2]].test_only:
            continue
        of_case = [r for r in rows if (r["task"], r["positions"], r["arm"]) == case]
        losses = {r["seed"]: r["loss"] for r in of_case}
        lengths, right = curves(rows, case, "right_float32")
        inside = right[:, [i for i, n in enumerate(lengths) if n <= plan.LONGEST]]
        lines.append(
            [
                *named(case),
                f"{np.median(list(losses.values())):.1e}",
                f"{max(losses.values()):.1e}",
                f"{inside.mean():.3f}",
                f"{int((inside == 1).all(1).sum())} of {len(inside)}",
            ]
        )
    head = ["task", "positions", "arm", "loss, median", "worst seed", f"right at n <= {plan.LONGEST}"]
    return table([*head, "seeds with all right"], lines)


def margins(rows: list[Row]) -> str:
    """Of copying with the answer 0, in both precisions."""
    lines = []
    for case in cases(rows):
        if case[0] == "count":
            continue
        cells = []
        for n in SHOWN:
            full, low = (np.median(at(rows, case, f"margin_of_0_{dtype}", n)) for dtype in plan.DTYPES)
            cells.append(f"{full:.1f} / {low:.1f}")
        lines.append([*named(case), *cells])
    return table(["task", "positions", "arm", *(f"n = {n:,}" for n in SHOWN)], lines)


def gaps(rows: list[Row]) -> str:
    """Naive and phase-matched pairs, with their ratio to the same without a remedy."""
    lines = []
    for case in cases(rows):
        plain = (case[0], case[1], "plain")
        for kind, name in (("next", "n + 1"), ("matched", "n + 3")):
            cells = []
            for n in plan.GAP_LENGTHS[::2]:
                gap, snr = (np.median(at(rows, case, f"{what}_{kind}", n)) for what in ("gap", "snr"))
                ratio = ratio_of_means(at(rows, case, f"gap_{kind}", n), at(rows, plain, f"gap_{kind}", n))
                times = "" if case == plain or ratio is None else f", {emphasised(ratio)}"
                cells.append(f"{gap:.2g} ({snr:.3g}){times}")
            lines.append([*named(case), name, *cells])
    lengths = (f"n = {n:,}" for n in plan.GAP_LENGTHS[::2])
    return table(["task", "positions", "arm", "n and", *lengths], lines)


def shares(rows: list[Row]) -> str:
    """How much of the sensitivity is that to the digit to be copied."""
    lines = []
    for case in cases(rows):
        if case[0] != "count":
            found = [at(rows, case, "share", n) for n in plan.SENSITIVITY_LENGTHS]
            cells = (f"{np.median(x):.3f} ({x.min():.3f} to {x.max():.3f})" for x in found)
            lines.append([*named(case), *cells])
    return table(["task", "positions", "arm", *(f"n = {n}" for n in plan.SENSITIVITY_LENGTHS)], lines)


def page(rows: list[Row]) -> str:
    """Everything between the page's marks, from the rows of the CSV."""
    parts = [
        "## What agrees with the paper, and what does not\n\n" + claims(rows),
        "## Separators and the gap of ones\n\nGaps with separators over those without, at as many digits, "
        f"n = {FAR}: geometric means of five seeds; bold where the interval is on one side of 1.\n\n"
        + separator_gaps(rows),
    ]
    parts += [f"## n50, {task}\n\n{half_lengths(rows, task)}" for task in TASKS]
    parts += [
        "## Margins in float32 / bfloat16\n\nThe logit of 0 above that of 1 when the digit to be copied is "
        "0; medians of the seeds. Below 0 the answer is wrong.\n\n" + margins(rows),
        "## Gaps of ones\n\nThe largest feature of the difference of the last states, in float32; in "
        "brackets, that over bfloat16's rounding of a state; medians of the seeds. Times: the geometric mean "
        "over that of no remedy, at as many digits.\n\n" + gaps(rows),
        "## Sensitivity to the digit to be copied\n\nIts share of all tokens', in the Frobenius norm of the "
        "Jacobian of the last state; median, and range of the seeds.\n\n" + shares(rows),
        "## Training\n\n" + trainings(rows),
    ]
    return "\n\n".join(parts)


def report() -> None:
    """Put together what there is.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    jobs = [job for tier in "ab" for job in plan.jobs(tier)]
    rows = list(rows_of(jobs))
    refuse_to_lose_rows(DOCS / "glasses_trained.csv", len(rows))
    if not rows:
        raise SystemExit("nothing has ended yet: run without --report")
    runs: list[dict[str, Any]] = [
        found["training"] | {"cpu_s": found["cpu_s"]} for job in jobs if (found := result(job))
    ]
    text = page(rows)
    write_results(DOCS / "glasses_trained.md", f"{text}\n\n{where_they_ran(runs, PACKAGES)}")
    with open(DOCS / "glasses_trained.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()})
    plot(DOCS / "glasses_trained.png", rows)
    print(text)
