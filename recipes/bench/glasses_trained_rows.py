"""The runs of `glasses_trained` as rows of numbers, and what is read from rows: n50, gains, gaps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from extensions.glasses.statistics import half_length

from . import glasses_trained_plan as plan
from .glasses_decoder import POSITIONS
from .glasses_questions import TASKS, tokens_of
from .glasses_theory_page import by_seed
from .glasses_trained_plan import ARMS, Job
from .intervals import estimate, ratio_of_medians
from .training_runs import result

Row = dict[str, Any]
Case = tuple[str, str, str]  # task, positions, arm

CHANCE = {"copy_first": 1 / 2, "copy_last": 1 / 2, "count": 1 / (plan.LONGEST + 1)}
KINDS = ("answer", "next", "matched")
COLUMNS = (
    "task", "positions", "arm", "seed", "loss", "n", "tokens",
    *(f"{what}_{dtype}" for what in ("right", "margin", "margin_of_0") for dtype in plan.DTYPES), "error",
    *(f"{what}_{kind}" for kind in KINDS for what in ("gap", "snr")), "share",
)  # fmt: skip


def rows_of(jobs: Iterable[Job]) -> Iterator[Row]:
    """Of the jobs that have ended, a row for each arm, seed and length; None where a length was not asked."""
    for job in jobs:
        found = result(job)
        if found is None:
            continue
        for arm in job.tested:
            for i, measured in enumerate(found["tested"][arm]):
                about = {"task": job.task, "positions": job.positions, "arm": arm, "seed": plan.SEEDS[i]}
                yield from _rows_of_seed(about | {"loss": found["training"]["loss"][i]}, measured)


def _rows_of_seed(about: Row, measured: dict[str, Any]) -> Iterator[Row]:
    answers, gaps, shares = (
        {at["length"]: at for at in measured[name]} for name in ("answers", "gaps", "shares")
    )
    for n in sorted({*answers, *gaps, *shares}):
        row = dict.fromkeys(COLUMNS) | about | {"n": n, "tokens": tokens_of(ARMS[about["arm"]].layout, n)}
        if n in answers:
            for dtype in plan.DTYPES:
                margins = answers[n]["margin"][dtype]
                row[f"right_{dtype}"] = answers[n]["right"][dtype]
                row[f"margin_{dtype}"] = float(np.mean(margins))
                row[f"margin_of_0_{dtype}"] = margins[0] if len(margins) == 2 else None
            row["error"] = answers[n].get("error", {}).get("float32")
        for kind in KINDS:
            if kind in gaps.get(n, {}):
                row[f"gap_{kind}"], row[f"snr_{kind}"] = gaps[n][kind]["gap"], gaps[n][kind]["snr"]
        row["share"] = shares[n]["share"] if n in shares else None
        yield row


def cases(rows: list[Row]) -> list[Case]:
    """What was run, in the order of the plan."""
    there = {(r["task"], r["positions"], r["arm"]) for r in rows}
    return [case for case in all_cases() if case in there]


def all_cases() -> list[Case]:
    """All that the plan asks for, task by task."""
    planned = {
        (job.task, job.positions, arm) for tier in "ab" for job in plan.jobs(tier) for arm in job.tested
    }
    order = {name: i for i, name in enumerate((*TASKS, *POSITIONS, *ARMS))}
    return sorted(planned, key=lambda case: [order[name] for name in case])


def curves(rows: list[Row], case: Case, quantity: str) -> tuple[list[int], np.ndarray]:
    """Lengths in digits, and a quantity at each, (seeds, lengths); without rows, none."""
    kept = [r for r in rows if r[quantity] is not None]
    return by_seed(kept, quantity, **dict(zip(("task", "positions", "arm"), case, strict=True)))


def n50s(rows: list[Row], case: Case, dtype: str = "float32") -> list[float]:
    """Of each seed, in digits; infinite where it is beyond the longest that was asked."""
    lengths, right = curves(rows, case, f"right_{dtype}")
    return [half_length(lengths, row.tolist(), CHANCE[case[0]]).length for row in right]


def gain(rows: list[Row], case: Case, over: Case, tokens: bool = False) -> tuple[float, float, float]:
    """The ratio of the medians of n50 of two cases that have run, and its interval, in digits or in tokens.
    What is beyond the longest test counts as that."""

    def within(which: Case) -> list[float]:
        digits = [min(x, plan.LENGTHS[which[0]][-1]) for x in n50s(rows, which)]
        layout = ARMS[which[2]].layout
        return [tokens_of(layout, round(x)) for x in digits] if tokens else digits

    return ratio_of_medians(within(case), within(over))


def at(rows: list[Row], case: Case, quantity: str, n: int) -> np.ndarray:
    """A quantity at one length, (seeds,)."""
    lengths, values = curves(rows, case, quantity)
    return values[:, lengths.index(n)] if n in lengths else np.empty(0)


def ratio_of_means(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float] | None:
    """The geometric mean of positive ``x`` over that of ``y``, and its 95% bootstrap interval."""
    if not len(x) or not len(y) or min(x.min(), y.min()) <= 0:
        return None
    (point,), ((low,), (high,)) = estimate(
        lambda a, b: np.array([np.exp(np.log(a).mean() - np.log(b).mean())]), x[:, None], y[:, None]
    )
    return float(point), float(low), float(high)
