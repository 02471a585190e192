"""The tables that are made of the runs of :mod:`.glasses_grpo`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .glasses_grpo_plan import ARMS, BINS, DTYPES, EVERY, NEIGHBOURS, SETTINGS
from .intervals import interval, rank_correlation

CRITERIA = {"bitwise": "same bits", "snr": "SNR below 1", "argmax": "same likeliest token"}
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}

Runs = list[dict[str, Any]]


def of(runs: Runs, **wanted: Any) -> Runs:
    """Those of a setting, an arm, a precision or a seed."""
    return [run for run in runs if all(run[name] == value for name, value in wanted.items())]


def groups(runs: Runs) -> Iterable[tuple[str, str, str, Runs]]:
    """Setting, arm, precision, and the runs of its seeds, where there are any."""
    for setting in SETTINGS:
        for arm in ARMS:
            for dtype in DTYPES:
                if found := of(runs, setting=setting, arm=arm, dtype=dtype):
                    yield setting, arm, dtype, found


def mean(values: Iterable[float], digits: int = 3) -> str:
    """With its bootstrap interval of 95% over seeds, from three of them on."""
    x = np.array(list(values), float)
    if len(x) < 3 or np.ptp(x) == 0:
        return f"{x.mean():.{digits}f}"
    return interval(lambda scores: np.array([scores.mean()]), x[:, None], digits=digits)


def table(head: list[str], rows: list[list[str]]) -> str:
    """In markdown."""
    if not rows:
        return "Not run yet."
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def named(setting: str, arm: str, dtype: str) -> list[str]:
    """The first cells of a row."""
    return [SETTINGS[setting].title, ARMS[arm], PRECISIONS[dtype]]


def ceilings_table(runs: Runs) -> str:
    """What was foretold, and what came."""
    rows = []
    for setting, arm, dtype, found in groups(runs):
        told = [mean(run["before"]["ceilings"][name] for run in found) for name in CRITERIA]
        came = [
            mean(run[when][what] for run in found)
            for what in ("expected_reward", "greedy")
            for when in ("before", "after")
        ]
        share = mean(run["after"]["expected_reward"] / run["before"]["ceilings"]["snr"] for run in found)
        rows.append([*named(setting, arm, dtype), str(len(found)), *told, *came, share])
    head = ["setting", "arm", "", "seeds", *(f"ceiling, {title}" for title in CRITERIA.values())]
    head += ["reward before", "after", "greedy before", "after", "reward after / ceiling by SNR"]
    return table(head, rows)


def above(runs: Runs, criterion: str, what: str) -> tuple[int, int]:
    """How many runs ended above their ceiling, and how many had one below 1."""
    bound = [run for run in runs if run["before"]["ceilings"][criterion] < 1]
    over = [run for run in bound if run["after"][what] > run["before"]["ceilings"][criterion]]
    return len(over), len(bound)


def above_table(runs: Runs) -> str:
    """Whether runs kept below what was foretold."""
    rows = []
    for setting, about in SETTINGS.items():
        for criterion, title in CRITERIA.items():
            here = of(runs, setting=setting)
            if here:
                counts = [above(here, criterion, what) for what in ("expected_reward", "greedy")]
                rows.append(
                    [about.title, title, str(len(here)), str(counts[0][1]), *(str(n) for n, _ in counts)]
                )
    head = ["setting", "criterion", "runs", "with a ceiling below 1", "reward above it", "greedy above it"]
    return table(head, rows)


def ranks(runs: Runs, criterion: str) -> str:
    """Spearman's correlation of ceilings before and reward after, over runs, with its bootstrap interval."""
    told = [run["before"]["ceilings"][criterion] for run in runs]
    came = [run["after"]["expected_reward"] for run in runs]
    if len(set(told)) < 2:
        return f"all {told[0]:.3g}"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*rank_correlation(told, came))


def ranks_table(runs: Runs) -> str:
    """Whether higher ceilings go with higher rewards; precisions apart, since they share models."""
    parts = [("all settings", runs)] + [(x.title, of(runs, setting=name)) for name, x in SETTINGS.items()]
    rows = [
        [title, PRECISIONS[dtype], str(len(here)), *(ranks(here, criterion) for criterion in CRITERIA)]
        for title, part in parts
        for dtype in DTYPES
        if (here := of(part, dtype=dtype))
    ]
    return table(["", "", "runs", *CRITERIA.values()], rows)


def precision_table(runs: Runs) -> str:
    """What bfloat16 changes, seed by seed."""
    rows = []
    for setting, about in SETTINGS.items():
        for arm, title in ARMS.items():
            one, two = (
                {run["seed"]: run for run in of(runs, setting=setting, arm=arm, dtype=d)} for d in DTYPES
            )
            seeds = sorted(one.keys() & two.keys())
            if seeds:
                gaps = [
                    mean(two[seed]["after"][what] - one[seed]["after"][what] for seed in seeds)
                    for what in ("expected_reward", "greedy")
                ]
                rows.append([about.title, title, str(len(seeds)), *gaps])
    return table(["setting", "arm", "seeds", "reward, bf16 - fp32", "greedy, bf16 - fp32"], rows)


def bins_table(runs: Runs) -> str:
    """Greedy answers by length, before and after."""
    rows = []
    for setting, arm, dtype, found in groups(runs):
        cells = [
            f"{np.mean([run['before']['greedy_by_bin'][b] for run in found]):.2f} to "
            f"{np.mean([run['after']['greedy_by_bin'][b] for run in found]):.2f}"
            for b in range(BINS)
        ]
        round_ones = [np.mean([run[when]["round_numbers"] for run in found]) for when in ("before", "after")]
        rows.append([*named(setting, arm, dtype), *cells, f"{round_ones[0]:.3f} to {round_ones[1]:.3f}"])
    quarters = [f"{name} quarter" for name in ("first", "second", "third", "last")]
    return table(["setting", "arm", "", *quarters, "round numbers"], rows)


def logged(run: dict[str, Any], name: str) -> list[float]:
    """The values of a metric, in the order they were logged."""
    return [entry[name] for entry in run["history"] if name in entry]


def log_table(runs: Runs) -> str:
    """What TRL logged in the first and the last sixth of the updates."""
    names = {
        "reward": "sampled reward",
        "frac_reward_zero_std": "groups without spread",
        "entropy": "entropy, nats",
        "round_number_rate": "round numbers",
    }
    rows = []
    for setting, arm, dtype, found in groups(runs):
        ends = [[np.mean([logged(run, name)[i] for run in found]) for i in (0, -1)] for name in names]
        rows.append([*named(setting, arm, dtype), *(f"{first:.3f} to {last:.3f}" for first, last in ends)])
    return table(["setting", "arm", "", *names.values()], rows)


def gaps_table(runs: Runs) -> str:
    """SNR in bfloat16 as `GlassesCallback` logged it, before and after; runs in float32, medians of seeds."""
    rows = []
    for setting, arm, dtype, found in groups(runs):
        if dtype == "float32":
            cells = []
            for more in (1, EVERY):
                for length in SETTINGS[setting].watched:
                    name = f"glasses/plus_{more}/snr_bfloat16/{length}"
                    first, last = (np.median([logged(run, name)[i] for run in found]) for i in (0, -1))
                    cells.append(f"{length}: {first:.3g} to {last:.3g}")
            rows.append([SETTINGS[setting].title, ARMS[arm], ", ".join(cells[:3]), ", ".join(cells[3:])])
    return table(["setting", "arm", "n and n + 1", f"n and n + {EVERY}"], rows)


def far_table(found: Runs) -> str:
    """Ceilings of more ones than any model was trained on."""
    rows = []
    for setting, about in SETTINGS.items():
        here = of(found, setting=setting)
        for first in here[0]["ceilings"] if here else ():
            told = [run["ceilings"][first] for run in here]
            cells = [
                mean(one[dtype][criterion] for one in told) for dtype in DTYPES for criterion in CRITERIA
            ]
            ones = f"{first} to {int(first) + NEIGHBOURS - 1}"
            rows.append([about.title, ones, str(len(here)), *cells])
    titles = [f"{PRECISIONS[dtype]}, {title}" for dtype in DTYPES for title in CRITERIA.values()]
    return table(["setting", "ones", "seeds", *titles], rows)
