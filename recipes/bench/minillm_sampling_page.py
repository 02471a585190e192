"""What is said of the figures of :mod:`.minillm_sampling`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from .action_scaling_page import table

COIN = "a coin a token"
BOTH = "both models a token"
STUDENT = "student alone"
TEACHER = "teacher alone"
STUDENT_GENERATE = "student alone, generate()"

NOTES = """
`sample_mixture` draws each token of a completion from alpha p + (1 - alpha) q, p the teacher and q the
student. `method="mixture"` runs both models at every token. `method="coin_flip"` has the same law, and one
model alone emits each token: the teacher with probability alpha, after it has read in one forward what has
been written since its last turn.

**Factor** is how many times as long `"mixture"` takes: the median over rounds, with its quartiles, of two
times of one round. The teacher's turns are drawn anew each round, so the quartiles have that in them.

**If reading were free** is what the factor would be if a forward took as long for many tokens as for one:
(s + t) / ((1 - alpha) s + alpha t), with the times s and t of student and teacher alone. It is not free: the
teacher still reads every token, only in fewer and longer forwards.

On a machine that others use, CPU time is the steadier clock for one thread.

`generate()` is transformers' own sampling from the student, without a teacher: what the loop itself costs can
be seen beside "student alone", which is `sample_mixture` with alpha = 0.
"""

#: (device, case, contestant, clock) -> row of the CSV
Rows = dict[tuple[str, str, str, str], dict[str, Any]]


def keyed(rows: list[dict[str, Any]]) -> Rows:
    return {(r["device"], r["case"], r["contestant"], r["clock"]): r for r in rows}


def read(out: Path) -> Rows:
    """All rows that were measured, of any device."""
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob("minillm_sampling_*.csv")):
        if not path.stem.endswith("_raw"):
            with open(path, newline="") as file:
                rows += csv.DictReader(file)
    return keyed(rows)


def factor(row: dict[str, Any]) -> str:
    """The factor with its quartiles."""
    return f"{float(row['mixture_over_it']):.2f} ({float(row['q25']):.2f}-{float(row['q75']):.2f})"


def times(rows: Rows, device: str) -> str:
    """Every contestant of every case, in milliseconds with quartiles."""
    clocks = ("cpu", "wall") if device == "cpu" else ("wall",)
    lines = []
    for d, case, name, clock in rows:
        if (d, clock) != (device, clocks[0]):
            continue
        of = [rows[device, case, name, c] for c in clocks]
        spent = [
            f"{1e3 * float(r['median_s']):.0f} ({1e3 * float(r['q25_s']):.0f}-{1e3 * float(r['q75_s']):.0f})"
            for r in of
        ]
        lines.append([case, name, *spent, *(factor(r) for r in of)])
    head = [*(f"{c} time, ms" for c in clocks), *(f"mixture / it, {c} time" for c in clocks)]
    return table(["models", "", *head], lines)


def factors(rows: Rows, device: str, cases: dict[str, dict[str, Any]]) -> str:
    """A line for each case: the factor, and what it would be if reading were free."""
    clocks = ("cpu", "wall") if device == "cpu" else ("wall",)
    lines = []
    for name, case in cases.items():
        s, t = (float(rows[device, name, who, clocks[0]]["median_s"]) for who in (STUDENT, TEACHER))
        free = (s + t) / ((1 - case["alpha"]) * s + case["alpha"] * t)
        lines.append(
            [
                name,
                *(f"{case[who][0]} x {case[who][1]}" for who in ("student", "teacher")),
                f"{case['rows']}",
                f"{case['alpha']:g}",
                f"{t / s:.1f}",
                *(factor(rows[device, name, COIN, clock]) for clock in clocks),
                f"{free:.2f}",
            ]
        )
    head = ["models", "student", "teacher", "rows", "alpha", "teacher's time / student's"]
    return table([*head, *(f"**factor**, {clock} time" for clock in clocks), "if reading were free"], lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """The table of what was measured just now."""
    return times(keyed(rows), rows[0]["device"])


def write_page(out: Path) -> None:
    """The page, from the files beside it."""
    rows = read(out)
    parts = [
        "# Time of teacher-mixed sampling",
        "`python -m recipes.bench.minillm_sampling`",
        NOTES.strip(),
    ]
    for device in ("cpu", "cuda"):
        parts.append(f"## {'CPU' if device == 'cpu' else 'CUDA'}")
        place = out / f"minillm_sampling_{device}.json"
        if not place.exists():
            parts.append(f"Not run yet: `python -m recipes.bench.minillm_sampling --device {device}`.")
            continue
        where = json.loads(place.read_text())
        some = next(row for (d, *_), row in rows.items() if d == device)
        machine = [where["machine"], where["device"], f"Python {where['python']}"]
        machine += [f"torch {where['versions']['torch']}", f"transformers {where['transformers']}"]
        machine += [f"{some['threads']} thread{'' if str(some['threads']) == '1' else 's'}"]
        machine += [f"{some['rounds']} rounds"]
        parts.append("; ".join(filter(None, machine)) + f". Commit {where['commit']}, {where['day']}.")
        parts.append(what_was_run(where["cases"]))
        parts += [factors(rows, device, where["cases"]), "### Times", times(rows, device)]
    (out / "minillm_sampling.md").write_text("\n\n".join(parts) + "\n")


def what_was_run(cases: dict[str, dict[str, Any]]) -> str:
    """The settings that the table of factors has no column for."""
    same = {key: sorted({str(case[key]) for case in cases.values()}) for key in ("prompt", "new", "dtype")}
    vocabularies = sorted({case["vocabulary"] for case in cases.values()})
    return (
        f"GPT-2's architecture with random weights, layers x width; {', '.join(same['dtype'])}; prompts of "
        f"up to {', '.join(same['prompt'])} tokens, padded on the left; {', '.join(same['new'])} new tokens; "
        f"{' or '.join(f'{v:,}' for v in vocabularies)} tokens in the vocabulary."
    )
