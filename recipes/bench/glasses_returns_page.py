"""What is said of the runs of :mod:`.glasses_returns`: tables, sentences with figures, raw numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from envs.return_dial import best_action

from .glasses_returns_picture import plot
from .glasses_returns_plan import (
    COLLECTED,
    CONTEXTS,
    DATA,
    DT,
    HELD_OUT,
    HORIZON,
    INDEPENDENT,
    MEASURED,
    PARTS,
    RADT,
    REMEDIES,
    REMEDIES_CONTEXT,
    SHUFFLED,
    Arm,
)
from .glasses_returns_runs import HELD_OUT_SEED, Found, by_seed, ended, episodes_of, values
from .intervals import interval, iqm, rank_correlation
from .published import filled, refuse_to_lose_rows, where_they_ran

DOCS = Path("docs/benchmarks")
PACKAGES = ("torch", "torchrl", "transformers", "gymnasium", "numpy")
BOTH = (DT, RADT)
SHARES = {
    "newest_token": "newest return",
    "all_return_tokens": "all returns",
    "state_token": "newest state",
}
SHIFTS = {"shift_newest": "newest return + 1 std", "shift_all": "all returns + 1 std"}
PLAYED = {
    "slope": "target stays: slope",
    "error": "error / T",
    "turned_slope": "turned over: slope",
    "turned_error": "error / (T / 2)",
}
#: what is to predict, and the errors that are to be predicted
PREDICTORS = {"newest_token": "token's share, newest return", **SHIFTS}
ERRORS = {"error": "target stays", "turned_error": "turned over"}


def cell(found: list[float], digits: int = 3) -> str:
    """Interquartile mean over seeds and its interval."""
    known = [x for x in found if x is not None]
    if not found:
        return "not run yet"
    return interval(iqm, np.array(known)[:, None], digits=digits) if known else "none"


def row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join([row(*head), "|" + "---|" * len(head), *(row(*cells) for cells in rows)])


def untrained(runs: Found) -> str:
    """Shares of tokens before training, by context; they know nothing of the data yet."""
    names = (*SHARES, "newest_of_returns")
    rows = [
        [arm.title, k, *(cell(values(runs, arm, COLLECTED, k, "init", name), 5) for name in names)]
        for arm in BOTH
        for k in CONTEXTS
    ]
    return table(["actor", "K", *SHARES.values(), "newest among returns"], rows)


def trained(runs: Found, data: str) -> str:
    """Shares, shifts and errors on some data, by context."""
    rows = [
        [
            arm.title,
            k,
            *(cell(values(runs, arm, data, k, "trained", name)) for name in (*SHARES, *SHIFTS)),
            *(cell(values(runs, arm, data, k, name)) for name in PLAYED),
        ]
        for arm in BOTH
        for k in CONTEXTS
    ]
    return table(["actor", "K", *SHARES.values(), *SHIFTS.values(), *PLAYED.values()], rows)


def remedies(runs: Found) -> str:
    """Other ways to show the return, at one context."""
    names = ("newest_token", "all_return_tokens", *SHIFTS)
    rows = [
        [
            data,
            arm.title,
            *(cell(values(runs, arm, data, REMEDIES_CONTEXT, "trained", name)) for name in names),
            *(cell(values(runs, arm, data, REMEDIES_CONTEXT, name)) for name in PLAYED),
        ]
        for data in (COLLECTED, INDEPENDENT)
        for arm in (*BOTH, *REMEDIES)
    ]
    head = ["data", "actor", SHARES["newest_token"], SHARES["all_return_tokens"]]
    return table([*head, *SHIFTS.values(), *PLAYED.values()], rows)


def exponents(runs: Found, arm: Arm, data: str, when: str, name: str) -> list[float]:
    """The slope of log(value) against log(K) over all K, of each seed that has them all."""
    by_context = [by_seed(runs, arm, data, k, when, name) for k in CONTEXTS]
    having_all = set.intersection(*map(set, by_context))
    return [
        float(np.polyfit(np.log(CONTEXTS), np.log([found[seed] for found in by_context]), 1)[0])
        for seed in sorted(having_all)
    ]


def exponents_table(runs: Found) -> str:
    """How what the newest return does falls with the context."""
    rows = [
        [
            "before training",
            arm.title,
            *(cell(exponents(runs, arm, COLLECTED, "init", n), 2) for n in PREDICTORS),
        ]
        for arm in BOTH
    ] + [
        [
            f"trained, {data}",
            arm.title,
            *(cell(exponents(runs, arm, data, "trained", n), 2) for n in PREDICTORS),
        ]
        for data in (COLLECTED, INDEPENDENT)
        for arm in BOTH
    ]
    return table(["when", "actor", *PREDICTORS.values()], rows)


def prediction(runs: Found, arm: Arm, data: str, name: str, error: str, within: bool) -> str:
    """Rank correlation of sensitivity and error over seeds and contexts, or over seeds of one context."""
    x, y, context = [], [], []
    for k in CONTEXTS:
        found = values(runs, arm, data, k, "trained", name)
        x += found
        y += values(runs, arm, data, k, error)
        context += [k] * len(found)
    if not x:
        return "not run yet"
    point, low, high = rank_correlation(x, y, context if within else None)
    return f"{point:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(point) else "undefined"


def predictions(runs: Found) -> str:
    """Whether a sensitivity predicts an error; -1 if it does so without exception."""
    rows = [
        [
            data,
            arm.title,
            ERRORS[error],
            "all" if not within else "seeds of one K",
            *(prediction(runs, arm, data, name, error, within) for name in PREDICTORS),
        ]
        for data in (COLLECTED, INDEPENDENT)
        for arm in BOTH
        for error in ERRORS
        for within in (False, True)
    ]
    return table(["data", "actor", "error", "over", *PREDICTORS.values()], rows)


def best_shift() -> float:
    """What one std of the return does to the best action where sensitivities are measured."""
    to_go = (
        episodes_of(COLLECTED, HELD_OUT, HELD_OUT_SEED)["return_to_go"][:, MEASURED, 0].double().numpy()
        * HORIZON
    )
    up, down = (best_action(to_go + s * to_go.std(ddof=1), HORIZON - MEASURED) for s in (1, -1))
    return float(np.mean(np.abs(up - down)) / 2)


def findings(runs: Found) -> Iterator[str]:
    """Sentences, each with the figures that it is about."""
    longest = CONTEXTS[-1]

    def of(arm: Arm, data: str, k: int, *names: str) -> str:
        return cell(values(runs, arm, data, k, *names))

    def exponent(arm: Arm, data: str, when: str, name: str = "newest_token") -> str:
        return cell(exponents(runs, arm, data, when, name), 2)

    yield (
        "**Before training.** The share of the newest return's token goes as K to the power of "
        f"{exponent(DT, COLLECTED, 'init')} in DT (-1 was predicted), and "
        f"{exponent(RADT, COLLECTED, 'init')} in RADT."
    )
    for data in (COLLECTED, INDEPENDENT):
        yield (
            f"**Trained, {data}.** The power is {exponent(DT, data, 'trained')} in DT and "
            f"{exponent(RADT, data, 'trained')} in RADT. From K = 1 to K = {longest}, one std of the newest "
            f"return moves DT's action by {of(DT, data, 1, 'trained', 'shift_newest')} and then "
            f"{of(DT, data, longest, 'trained', 'shift_newest')}, RADT's by "
            f"{of(RADT, data, 1, 'trained', 'shift_newest')} and then "
            f"{of(RADT, data, longest, 'trained', 'shift_newest')}; all returns together move DT's by "
            f"{of(DT, data, longest, 'trained', 'shift_all')} at K = {longest}. The error after the turn: "
            f"{of(DT, data, 1, 'turned_error')} and then {of(DT, data, longest, 'turned_error')} in DT, "
            f"{of(RADT, data, 1, 'turned_error')} and then {of(RADT, data, longest, 'turned_error')} in RADT."
        )
    yield (
        "**Shuffled returns.** One std of all returns moves DT's action by "
        f"{of(DT, SHUFFLED, REMEDIES_CONTEXT, 'trained', 'shift_all')} at K = {REMEDIES_CONTEXT}, and RADT's "
        f"by {of(RADT, SHUFFLED, REMEDIES_CONTEXT, 'trained', 'shift_all')}."
    )
    yield f"The best policy's action would move by {best_shift():.3f} where this is measured."


def write_csv(path: Path, runs: Found) -> None:
    """A row a run."""
    measured = (*SHARES, "newest_of_returns", *SHIFTS)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        before_and_after = [f"{when} {name}" for when in ("init", "trained") for name in measured]
        writer.writerow(
            [
                "data",
                "arm",
                "context",
                "seed",
                *before_and_after,
                *PLAYED,
                "loss",
                "parameters",
                "cpu_s",
                "by_return",
            ]
        )
        for job, run in runs:
            of_it = [run[when][name] for when in ("init", "trained") for name in measured]
            of_it += [run[name] for name in (*PLAYED, "loss")]
            writer.writerow(
                [job.data, job.arm.title, job.context, job.seed]
                + ["" if x is None else f"{x:.6g}" for x in of_it]
                + [
                    run["parameters"],
                    f"{run['cpu_s']:.1f}",
                    " ".join(f"{x:.3g}" for x in run["trained"]["by_return"]),
                ]
            )


def report() -> None:
    """Put together what there is.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    runs = [pair for part in PARTS.values() for pair in ended(part())]
    refuse_to_lose_rows(DOCS / "glasses_returns.csv", len(runs))
    tables = [
        f"### Before training\n\n{untrained(runs)}",
        *(f"### Trained: {data}\n\n{trained(runs, data)}" for data in DATA),
        f"### Powers of K\n\n{exponents_table(runs)}",
        f"### Does sensitivity predict the error?\n\n{predictions(runs)}",
        f"### Other ways to show the return, K = {REMEDIES_CONTEXT}\n\n{remedies(runs)}",
        where_they_ran([run for _, run in runs], PACKAGES),
    ]
    page = DOCS / "glasses_returns.md"
    places = {
        "findings": "\n" + "\n".join(f"- {sentence}" for sentence in findings(runs)) + "\n",
        "results": "\n" + "\n\n".join(tables) + "\n",
    }
    page.write_text(filled(page.read_text(), places))
    write_csv(DOCS / "glasses_returns.csv", runs)
    plot(DOCS / "glasses_returns.png", runs)
    print("\n\n".join(tables))
