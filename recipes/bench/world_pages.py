"""The documentation's page of each world: its docstring, a picture, its ids and their reference scores.

    python -m recipes.bench.world_pages [--out docs/environments]

Makes ``WORLD.md`` and ``WORLD.png`` for each world, and ``table.md``, the table of all. Scores are read from
``docs/benchmarks/world_scores.csv``, which ``python -m recipes.bench.world_scores`` makes. The return dial,
which has no scores, gets its page and picture as well.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from envs import world_ids
from envs.control import DiscretizeFlat
from envs.dynamics.world import World
from envs.return_dial import ReturnDial, draw

from .action_scaling_page import table
from .world_scores import control_ids, name_of, read

SCORES = Path("docs/benchmarks/world_scores.csv")
COMMAND = "`python -m recipes.bench.world_scores`"
READING = (
    f"Undiscounted returns, means ± standard errors ({COMMAND}). The best possible is exact, or an\n"
    "upper bound where there is a <=. The gap is what the oracle brings less than that bound on the same\n"
    "episodes, in percent of it."
)
STEPS = 3  # before the picture is taken


def world_of(id: str) -> World:
    return gym.make(id).unwrapped.dynamics  # type: ignore[attr-defined]


def by_class() -> dict[type[World], list[str]]:
    """The ids of each world."""
    found: dict[type[World], list[str]] = {}
    for id in world_ids():
        found.setdefault(type(world_of(id)), []).append(id)
    return found


def slug(cls: type) -> str:
    """The name of a world's module, and so of its page."""
    return "mujoco" if cls is DiscretizeFlat else cls.__module__.rpartition(".")[2]


def exact_or_bound(row: dict[str, str]) -> str:
    """The best return that is possible, or a bound of it."""
    if row["optimum"]:
        return measured(row["optimum"], "0")
    if not row["bound"]:
        return ""
    return ("" if row["exact"] == "True" else "<= ") + measured(row["bound"], row["bound_se"])


def gap(row: dict[str, str]) -> str:
    """How much less the oracle brings, on the same episodes, than its bound; nothing where it is exact."""
    if row["exact"] == "True" or row["optimum"] or not row["bound"]:
        return ""
    share = float(row["gap"]) / abs(float(row["bound"]))
    return f"{100 * share:.2g} %"


def measured(mean: str, error: str) -> str:
    """A mean with its standard error, or alone where there is none."""
    if not mean:
        return ""
    digits = 0 if abs(float(mean)) >= 1000 else 1 if abs(float(mean)) >= 100 else 3
    text = f"{float(mean):.{digits}f}"
    return text if float(error) < 1e-9 else f"{text} ± {float(error):.2g}"


def random_score(row: dict[str, str]) -> str:
    """What uniform ids bring: in closed form where there is one."""
    if row["random_exact"]:
        return f"{float(row['random_exact']):.3f} (closed form)"
    return measured(row["random"], row["random_se"])


def threshold_of(id: str) -> str:
    """The reward threshold that an id is registered with, if any."""
    threshold = gym.spec(id).reward_threshold
    return "" if threshold is None else f"{threshold:g}"


def scores_table(ids: list[str], scores: dict[str, dict[str, str]], link: bool) -> str:
    """A line an id; with ``link`` also its structure and the way to its page, and continuous control."""
    head = ["id", "actions", "best possible", "oracle", "gap", "uniform ids", "reward threshold"]
    lines = []
    for id in ids:
        row, world = scores.get(id), world_of(id)
        name = f"[`{id}`]({slug(type(world))}.md)" if link else f"`{id}`"
        given = [""] * 4
        if row:
            oracle = measured(row["oracle"], row["oracle_se"])
            given = [exact_or_bound(row), oracle, gap(row), random_score(row)]
        kind = [world.structure] if link else []
        lines.append([name, f"{world.n:,}", *kind, *given, threshold_of(id)])
    if link:
        head.insert(2, "structure")
        for id in control_ids():
            name = f"[`{id}`]({slug(DiscretizeFlat)}.md)"
            lines.append([name, *control_size_and_score(id, scores, ["factored and metric", "", "", ""])])
    return table(head, lines)


def control_size_and_score(id: str, scores: dict[str, dict[str, str]], between: list[str]) -> list[str]:
    """Of an id of `control_ids`: its number of actions, what comes ``between``, what uniform ids bring, and
    the reward threshold. MuJoCo is not needed for it."""
    row = scores.get(id)
    number, random = (f"{int(row['n']):,}", measured(row["random"], row["random_se"])) if row else ("", "")
    return [number, *between, random, threshold_of(id)]


def picture(id: str, path: Path) -> None:
    """One frame, a few of the oracle's steps after the start."""
    env: Any = gym.make(id, render_mode="rgb_array")
    env.reset(seed=1)
    world = env.unwrapped.dynamics
    for _ in range(STEPS):
        action = np.asarray(world.optimal_action(env.unwrapped.state)).item()
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    plt.imsave(path, env.render())


def page(cls: type, title: str, body: str) -> str:
    """A world's page: its docstring, with ``body`` after the first line."""
    text = inspect.cleandoc(cls.__doc__ or "")
    head, history, rest = text.partition("## Version History")
    first, _, specification = head.partition("\n")
    note = "<!-- Made by python -m recipes.bench.world_pages from the docstring: change that. -->"
    return f"# {title}\n\n{note}\n\n{first}\n{body}\n{specification.strip()}\n\n{history}{rest}\n"


def text_of(cls: type[World], ids: list[str], scores: dict[str, dict[str, str]]) -> str:
    """The page of a world with an oracle."""
    example = ids[0]
    body = f"""
![{cls.__name__}]({slug(cls)}.png)

{inspect.getdoc(cls.draw)}

```python
import gymnasium as gym

env = gym.make("envs:{example}", render_mode="ansi")
env.reset(seed=0)
env.step(env.action_space.sample())
print(env.render())
```

{scores_table(ids, scores, link=False)}

{READING}
"""
    return page(cls, cls.__name__, body)


def text_of_mujoco(scores: dict[str, dict[str, str]]) -> str:
    """The page of what has no oracle."""
    head = ["id", "actions", "what is cut up", "bins of each control", "uniform ids", "reward threshold"]
    lines = [["`LargeAction/DiscretizedMujoco-v5`", "any", "`env_id`", "`bins`", "", ""]]
    for id in control_ids():
        cut = gym.spec(id).kwargs
        lines.append([f"`{id}`", *control_size_and_score(id, scores, [cut["env_id"], f"{cut['bins']:,}"])])
    body = f"""
```python
import gymnasium as gym

env = gym.make(
    "envs:LargeAction/DiscretizedMujoco-v5", env_id="Hopper-v5", bins=[11, 101, 101], render_mode="ansi"
)
env.reset(seed=0)
env.step(env.unwrapped.encode([0.0, -0.5, 1.0]).item())  # the id of the point next to these controls
print(env.render())
```

`pip install "rl-extensions[mujoco]"` installs MuJoCo. To render pictures on a machine without a display, set
`MUJOCO_GL=egl` in the environment, or `MUJOCO_GL=osmesa` where that library is installed.

{table(head, lines)}

Undiscounted returns of uniform ids, means ± standard errors over 100 episodes ({COMMAND}).
The thresholds are those of the originals, where they have one.
"""
    return page(DiscretizeFlat, "MuJoCo, cut up", body)


def text_of_return_dial() -> str:
    """The page of a task that has a target for a score."""
    body = f"""
![ReturnDial]({slug(ReturnDial)}.png)

{inspect.getdoc(draw)}

```python
import gymnasium as gym
from envs.return_dial import best_action, flip

env = gym.make("envs:Align/ReturnDial-v0", render_mode="ansi")
env.reset(seed=0)
target, collected = 15.0, 0.0  # what is left to collect, and what the second half brought
for left in range(20, 0, -1):
    if left == 10:
        target = flip(target, left)
        print("half way: from here on the target is", target)
    _, reward, *_ = env.step([best_action(target, left)])
    target -= reward
    collected += reward if left <= 10 else 0
print(env.render(), "the second half brought", collected)
```

`gym.make_vec("envs:Align/ReturnDial-v0", num_envs=64)` steps many as one batch, and
`recipes.data.return_dial.behaviour` makes episodes of all returns to learn from.
"""
    return page(ReturnDial, "ReturnDial", body)


def picture_of_return_dial(path: Path) -> None:
    """One frame, a third of the way."""
    env = ReturnDial(render_mode="rgb_array")
    env.reset(seed=0)
    for action in (0.5, 0.8, -0.3, 0.6, 0.2, 0.75):
        env.step([action])
    plt.imsave(path, env.render())


def text_of_table(scores: dict[str, dict[str, str]]) -> str:
    """The page with all ids that have a size."""
    ids = [id for id in world_ids() if "-" in name_of(id)]
    control = "Of MuJoCo, cut up, no oracle is known; its thresholds are MuJoCo's own."
    return f"# All worlds\n\n{READING}\n{control}\n\n{scores_table(ids, scores, link=True)}\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/environments"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    scores = read(SCORES)
    for cls, ids in by_class().items():
        (args.out / f"{slug(cls)}.md").write_text(text_of(cls, ids, scores))
        sized = next(id for id in ids if gym.spec(id).reward_threshold is not None)
        picture(sized, args.out / f"{slug(cls)}.png")
    (args.out / "mujoco.md").write_text(text_of_mujoco(scores))
    (args.out / "return_dial.md").write_text(text_of_return_dial())
    picture_of_return_dial(args.out / "return_dial.png")
    (args.out / "table.md").write_text(text_of_table(scores))
    print(f"see {args.out}")


if __name__ == "__main__":
    main()
