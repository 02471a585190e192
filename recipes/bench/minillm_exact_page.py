"""What is said of the runs of :mod:`.minillm_exact`: tables and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ..exact_language import ExactLanguage
from .action_scaling_page import table

Row = dict[str, Any]
BENCH = "recipes/bench/minillm_exact.py"
TOKEN_LEVEL = "token-level reverse KL"
#: tried with other learning rates too, and drawn
COMPARED = ("word-level KD", TOKEN_LEVEL, "mode paper", "mode modern", "eq. 7", "eq. 3, leave-one-out")
RATE = 0.03
METRICS = {
    "reverse_kl": "reverse KL",
    "forward_kl": "forward KL",
    "jsd": "JSD",
    "valid": "valid",
    "entropy": "entropy",
    "length": "length",
}

SAID = """
- **The long-term part is most of the gain.** Token-level reverse KL, exact over the vocabulary at each
  visited prefix, knows nothing of the tokens to come. MiniLLM's equation 7 has about a third less reverse
  KL of whole answers and is valid 15 points more often; without length normalisation and mixture, where the
  gradient is that of the reverse KL itself, it is more than half less, and 31 points.
- **What gets worse.** The student drops what it cannot say. Forward KL and entropy are by far best with
  plain KD. The better the reverse KL, the worse the forward KL in the main: 1.2 nats with KD, 3.1 with
  token-level reverse KL, 3.4 with equation 7, 5.1 with the exact gradient, whose student says templates
  more often than the teacher itself.
- **Answers get shorter** than the teacher's with most long-term parts, by up to 0.4 of 4.6 tokens. Length
  normalisation does not keep them long here: they are shorter with it than without.
- **alpha = 0.2** with the token's weight costs reverse KL (equation 7: 0.88 against 0.64; without length
  normalisation 0.62 against 0.58) and buys forward KL (3.4 against 4.9; 3.6 against 5.1). Products of
  weights, which have no [bias](minillm_variance.md), do neither. What the mixture is for, to keep a student
  from exploiting its teacher's mistakes, cannot be seen here: this teacher makes none.
- **Modes.** The paper's does as well as equation 7 with a quarter of the answers. The modern one, whose
  rewards are bounded at 5 nats, has less reverse KL than equation 7 with every seed (0.79 against 0.88 on
  average). The reference mode's is not better than that of token-level reverse KL beyond two standard errors.
- **Baselines change nothing here**, where 256 answers are more than enough for so few parameters. Plain
  policy gradient, too, gets to the same end.
- **GKD with JSD 0.5** cannot be told from token-level reverse KL in any column.
"""

NOTES = """
## How it was done

- **World.** `recipes/exact_language.py`: four prompts with five templates each, V = T = 6, every token
  exchanged with probability 0.05. The teacher's probabilities are Bayes' rule, and all 19,531 answers to a
  prompt are summed up, so the numbers have no error but that of the training's own seeds. *Valid* is the
  probability of saying a template without a fault, *length* is in tokens with EOS, all else is in nats of a
  whole answer.
- **Student.** It sees the place in the answer and the token before. It cannot be its teacher, and has to
  choose.
- **Training.** 300 updates of SeqKD, the same for all of a seed; then 1,500 updates of 256 answers with
  Adam, whose learning rate falls from 0.03 to 0 in a line. Updates are equal, and so are answers, but for
  the paper's and the reference mode, which use each answer four times and thus draw a quarter. No L_PT:
  there is no other text.
- **Methods.** SeqKD learns from ever new answers of the teacher, and word-level KD from the teacher's
  probabilities along them. GKD's JSD and token-level reverse KL (TRL's `DistillationTrainer` at `beta=1`)
  take the student's own answers and have no gradient through them. "eq. 7" is the paper's objective without
  a clip and with ever new answers; modes are those of `MiniLLMConfig`. "eq. 3" is without length
  normalisation, with alpha = 0 the exact gradient of the reverse KL. Losses are those of
  `extensions.trl.minillm.objective`.
- **Seeds** draw templates, weights, the start and all answers. Standard errors are over seeds, those of
  differences over the differences of each seed.
- **Not shown**: anything about real language. In a real model many more answers are valid, answers are
  longer and the long-term part is far noisier; a learning rate was chosen for all alike, see the last
  table.
"""


def last_of(rows: list[Row], method: str, rate: float = RATE) -> list[Row]:
    """The end of each run, by seed."""
    found = [r for r in rows if r["method"] == method and r["learning_rate"] == rate]
    end = max(r["update"] for r in found)
    return sorted((r for r in found if r["update"] == end), key=lambda r: r["seed"])


def with_error(values: Any, digits: int = 3, sign: str = "") -> str:
    """Mean and standard error over seeds."""
    x = np.array(values)
    return f"{x.mean():{sign}.{digits}f} ± {x.std(ddof=1) / len(x) ** 0.5:.{digits}f}"


def methods(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(r["method"] for r in rows))


def ends(rows: list[Row]) -> str:
    """A row a method."""
    lines = []
    for name in methods(rows):
        last = last_of(rows, name)
        lines.append([name, *(with_error([r[key] for r in last]) for key in METRICS)])
    seeds = [r["seed"] for r in last_of(rows, TOKEN_LEVEL)]
    teachers = [teacher(seed) for seed in seeds]
    lines.append(["*the teacher itself*", *(with_error([t[key] for t in teachers]) for key in METRICS)])
    return table(["method", *METRICS.values()], lines)


def teacher(seed: int) -> dict[str, float]:
    """The teacher's own figures."""
    language = ExactLanguage(seed=seed)
    p = language.answers.exp()
    sums = {
        "valid": p * language.valid,
        "entropy": -p * language.answers,
        "length": p * language.tree.mask.sum(-1),
    }
    found = {name: float(x.sum(-1).mean()) for name, x in sums.items()}
    return {"reverse_kl": 0.0, "forward_kl": 0.0, "jsd": 0.0, **found}


def differences(rows: list[Row]) -> str:
    """Each method less the token-level reverse KL, seed by seed."""
    base = last_of(rows, TOKEN_LEVEL)
    lines = []
    for name in methods(rows):
        if name == TOKEN_LEVEL:
            continue
        cells = []
        for key in METRICS:
            x = np.array([r[key] - b[key] for r, b in zip(last_of(rows, name), base, strict=True)])
            error = x.std(ddof=1) / len(x) ** 0.5
            bold = "**" if abs(x.mean()) > 2 * error else ""
            cells.append(f"{bold}{with_error(x, sign='+')}{bold}")
        lines.append([name, *cells])
    return table(["method", *METRICS.values()], lines)


def rates(rows: list[Row]) -> str:
    """Reverse and forward KL at other learning rates."""
    every = sorted({r["learning_rate"] for r in rows})
    lines = []
    for name in COMPARED:
        ended = [last_of(rows, name, rate) for rate in every]
        lines.append(
            [name, *(with_error([r[k] for r in e], 2) for k in ("reverse_kl", "forward_kl") for e in ended)]
        )
    return table(
        ["method", *(f"{k}, {rate:g}" for k in ("reverse KL", "forward KL") for rate in every)], lines
    )


def write_page(path: Path, rows: list[Row], about: str) -> None:
    """The page, from every run."""
    end = max(r["update"] for r in rows)
    seconds = sum(r["cpu_s"] for r in rows if r["update"] == end)
    text = ["# What policy gradient buys over exact token-level reverse KL"]
    text += [f"`python -m recipes.bench.minillm_exact`, {about}."]
    text += [SAID.strip(), "![Learning, divergences, and length](minillm_exact.png)"]
    text += ["## After training", f"Mean ± standard error of {len(last_of(rows, TOKEN_LEVEL))} seeds."]
    text += [ends(rows), "## Less token-level reverse KL, seed by seed"]
    text += ["Bold where it is more than two standard errors.", differences(rows)]
    text += [NOTES.strip(), "## Other learning rates", rates(rows)]
    text += [f"Every look at every run is in `minillm_exact.csv`; {seconds / 60:.0f} minutes of CPU time."]
    path.write_text("\n\n".join(text) + "\n")


def draw(path: Path, rows: list[Row]) -> None:
    """Learning curves, one divergence against the other, and length against validity."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    for i, name in enumerate(methods(rows)):
        color, marker = f"C{i % 10}", "os^"[i // 10]
        last = last_of(rows, name)
        means = {key: np.mean([r[key] for r in last]) for key in METRICS}
        style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "none", "label": name}
        middle.plot(means["reverse_kl"], means["forward_kl"], **style)
        right.plot(means["valid"], means["length"], **style)
        if name in COMPARED:
            runs = [r for r in rows if r["method"] == name and r["learning_rate"] == RATE]
            updates = sorted({r["update"] for r in runs})
            curve = [np.mean([r["reverse_kl"] for r in runs if r["update"] == u]) for u in updates]
            left.plot(updates, curve, color=color, label=name)
    seeds = [r["seed"] for r in last_of(rows, TOKEN_LEVEL)]
    right.axhline(
        np.mean([teacher(s)["length"] for s in seeds]), color="grey", linestyle=":", label="teacher"
    )
    left.set(xlabel="updates", ylabel="reverse KL, nats", title="On the way")
    middle.set(xlabel="reverse KL, nats", ylabel="forward KL, nats", title="Both divergences")
    right.set(xlabel="valid", ylabel="mean length, tokens", title="Validity and length")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=100)
    plt.close(figure)
