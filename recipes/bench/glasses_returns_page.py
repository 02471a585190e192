"""What is said of the runs of :mod:`.glasses_returns`: tables, sentences with figures, raw numbers."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .glasses_returns_figures import best_shift, cell, exponents, point, prediction
from .glasses_returns_picture import plot
from .glasses_returns_plan import (
    COLLECTED,
    CONTEXTS,
    DATA,
    DT,
    INDEPENDENT,
    PARTS,
    RADT,
    REMEDIES,
    REMEDIES_CONTEXT,
    SHUFFLED,
    Arm,
)
from .glasses_returns_runs import Found, ended, values
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


def row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join([row(*head), "|" + "---|" * len(head), *(row(*cells) for cells in rows)])


def untrained(runs: Found) -> str:
    """Shares of tokens before training, by context; they know nothing of the data yet."""
    names = (*SHARES, "newest_of_returns")
    rows = [
        [arm.title, k, *(point(values(runs, arm, COLLECTED, k, "init", name), 5) for name in names)]
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
            *(point(values(runs, arm, data, k, "trained", name)) for name in SHARES),
            *(cell(values(runs, arm, data, k, "trained", name)) for name in SHIFTS),
            *played(runs, arm, data, k),
        ]
        for arm in BOTH
        for k in CONTEXTS
    ]
    return table(["actor", "K", *SHARES.values(), *SHIFTS.values(), *PLAYED.values()], rows)


def played(runs: Found, arm: Arm, data: str, context: int) -> list[str]:
    """The cells of `PLAYED`, the last with its interval."""
    *first, last = (values(runs, arm, data, context, name) for name in PLAYED)
    return [*(point(found) for found in first), cell(last)]


def remedies(runs: Found) -> str:
    """Other ways to show the return, at one context."""
    rows = [
        [
            data,
            arm.title,
            *(
                point(values(runs, arm, data, REMEDIES_CONTEXT, "trained", name))
                for name in ("newest_token", "all_return_tokens", *SHIFTS)
            ),
            *played(runs, arm, data, REMEDIES_CONTEXT),
        ]
        for data in (COLLECTED, INDEPENDENT)
        for arm in (*BOTH, *REMEDIES)
    ]
    head = ["data", "actor", SHARES["newest_token"], SHARES["all_return_tokens"]]
    return table([*head, *SHIFTS.values(), *PLAYED.values()], rows)


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
    for within, over in ((False, "Over seeds and contexts"), (True, "Over seeds of one context")):
        rho = {
            (arm, error): prediction(runs, arm, COLLECTED, "shift_newest", error, within)
            for arm in BOTH
            for error in ERRORS
        }
        yield (
            f"**Prediction. {over}**, as collected, the rank correlation of what the newest return does and "
            f"the error after the turn is {rho[DT, 'turned_error']} in DT, {rho[RADT, 'turned_error']} in "
            f"RADT; with the error of a target that stays it is {rho[DT, 'error']} and {rho[RADT, 'error']}."
        )
    at_one = ", ".join(
        f"{arm.title} {cell(values(runs, arm, COLLECTED, REMEDIES_CONTEXT, 'turned_error'))}"
        for arm in (*BOTH, *REMEDIES)
    )
    yield f"**Other ways, K = {REMEDIES_CONTEXT}, as collected.** Error after the turn: {at_one}."
    yield f"The best policy's action would move by {best_shift():.3f} where this is measured."


def bullet(sentences: str) -> str:
    """Wrapped as the rest of the page is."""
    return textwrap.fill(sentences, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


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
        "findings": "\n" + "\n".join(bullet(sentences) for sentences in findings(runs)) + "\n",
        "results": "\n" + "\n\n".join(tables) + "\n",
    }
    page.write_text(filled(page.read_text(), places))
    write_csv(DOCS / "glasses_returns.csv", runs)
    plot(DOCS / "glasses_returns.png", runs)
    print("\n\n".join(tables))
