"""What is said of the runs of :mod:`.stochastic_q_scale`: tables, and the raw numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..bench.action_scaling_page import table
from ..bench.intervals import interval, iqm
from ..bench.minillm_page import write_rows
from ..bench.published import refuse_to_lose_rows, where_they_ran, write_results
from ..bench.training_runs import (
    Runs,
    first_at,
    in_last_third,
    last_third,
    ms_a_vector_step,
    reached,
    result,
    shares_of,
)
from .stochastic_q_scale_picture import plot
from .stochastic_q_scale_plan import (
    BASE,
    FAMILIES,
    LARGEST,
    ORACLE,
    RANDOM,
    SEEDS,
    WORLDS,
    Job,
    actions,
    in_ablation,
    in_size,
    methods,
    settings_in,
)

DOCS = Path("docs/benchmarks")
NAME = "stochastic_q_scale"
REACH = 0.9
PACKAGES = ("torch", "torchrl", "numpy")
NOT_YET = "not run yet"
#: all but the last three are of the last third of a run: from one checkpoint to the next a greedy policy may
#: be stuck or not
SCORES = [
    "seeds",
    "share: IQM [95% interval]",
    "worst seed",
    "worst checkpoint",
    "return",
    "return in training: IQM [95% interval]",
    "share at the end",
    f"steps to {REACH}",
    "CPU ms a vector step",
]


def runs_of(world: str, method: str) -> Runs:
    """What the seeds came to that have ended."""
    found = (result(Job(world, method, seed)) for seed in SEEDS)
    return [run for run in found if run is not None]


def ends(world: str) -> tuple[float, float] | None:
    """The two ends of a world's scale: the expected return of random ids, and the oracle's on the episodes
    of the evaluation. None until both have run."""
    random, oracle = result(Job(world, RANDOM, 0)), result(Job(world, ORACLE, 0))
    if random is None or oracle is None:
        return None
    return random["random"], oracle["records"][-1]["greedy"]


def shares(world: str, method: str, what: str = "greedy") -> np.ndarray:
    """Returns as shares of the way from random to the oracle: (seeds, checkpoints)."""
    scale = ends(world)
    return np.empty((0, 0)) if scale is None else shares_of(runs_of(world, method), *scale, what)


def scores(world: str, method: str) -> list[str]:
    """What a row says: a cell for each of `SCORES`."""
    found, runs = shares(world, method), runs_of(world, method)
    if not found.size:
        return [NOT_YET, *[""] * (len(SCORES) - 1)]
    late = found[:, -last_third(found.shape[1]) :]
    greedy, training = (in_last_third(shares_of(runs, 0.0, 1.0, what)) for what in ("greedy", "training"))
    return [
        str(len(runs)),
        interval(iqm, in_last_third(found), digits=3),
        f"{late.mean(1).min():.3f}",
        f"{late.min():.3f}",
        f"{iqm(greedy)[0]:.2f}",
        interval(iqm, training, digits=2),
        f"{iqm(found[:, -1:])[0]:.3f}",
        reached(first_at(runs, found, REACH, "steps")),
        f"{np.median([ms_a_vector_step(run) for run in runs]):.1f}",
    ]


def size_table(family: str) -> str:
    """A row a size and a method."""
    lines = [
        [f"{actions(world):,}", method, *scores(world, method)]
        for world in FAMILIES[family]
        for method in in_size(world)
    ]
    return table(["actions", "candidates", *SCORES], lines)


def ablation_table(world: str) -> str:
    """A row a change."""
    lines = [["", f"**{BASE}**", *scores(world, BASE)]]
    for group, rows in in_ablation(world).items():
        lines += [[group if i == 0 else "", row, *scores(world, row)] for i, row in enumerate(rows)]
    return table(["changed", "to", *SCORES], [[cell.replace("|", "\\|") for cell in row] for row in lines])


def scale_table() -> str:
    """What shares are shares of, and the budget of each world."""
    lines = []
    for world, task in WORLDS.items():
        scale = ends(world)
        low, high = (NOT_YET, NOT_YET) if scale is None else (f"{x:.3f}" for x in scale)
        given = ", ".join(f"{name} {value}" for name, value in settings_in(world).items())
        lines.append(
            [
                world,
                f"{actions(world):,}",
                low,
                high,
                f"{task.steps:,}",
                f"{task.num_envs}",
                f"{task.batch:,}",
                f"{task.eps_steps:,}",
                f"{task.gamma}",
                given,
            ]
        )
    head = [
        "world",
        "actions",
        "random",
        "oracle",
        "steps",
        "environments",
        "batch",
        "exploration falls over",
    ]
    return table([*head, "gamma", "settings of StochDQN"], lines)


def every_evaluation() -> list[dict[str, Any]]:
    """A row each, with its share."""
    rows = []
    for world in WORLDS:
        scale = ends(world)
        for method in methods(world):
            for run in runs_of(world, method):
                for at in run["records"]:
                    share = None if scale is None else (at["greedy"] - scale[0]) / (scale[1] - scale[0])
                    numbers = {"greedy": at["greedy"], "share": share, "training": at["training"]}
                    rows.append(
                        {
                            "world": world,
                            "actions": actions(world),
                            "method": method,
                            "seed": run["seed"],
                            "steps": at["steps"],
                            "updates": at["updates"],
                            **{name: "" if x is None else f"{x:.6g}" for name, x in numbers.items()},
                            "cpu_s": f"{at['cpu_s']:.2f}",
                        }
                    )
    return rows


def report() -> None:
    """Put together what there is.

    Raises:
        SystemExit: fewer runs are here than the page was made of, so that writing it would lose some.
    """
    rows = every_evaluation()
    refuse_to_lose_rows(DOCS / f"{NAME}.csv", len(rows))
    runs = [run for world in WORLDS for method in methods(world) for run in runs_of(world, method)]
    said = [
        "## More and more actions",
        *(f"### {family}\n\n{size_table(family)}" for family in FAMILIES),
        "## One thing changed at a time",
        *(f"### {world}\n\n{ablation_table(world)}" for world in LARGEST),
        f"## Budgets\n\n{scale_table()}",
        where_they_ran(runs, PACKAGES),
    ]
    write_results(DOCS / f"{NAME}.md", "\n\n".join(said))
    if rows:
        write_rows(DOCS / f"{NAME}.csv", rows)
    plot(DOCS / f"{NAME}.png", shares)
    print("\n\n".join(said))
