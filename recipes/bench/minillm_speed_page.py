"""What is said of the figures of :mod:`.minillm_speed`: tables, and the bounds set for them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from .action_scaling_page import table

BASE = "TRL's DistillationTrainer"
OFF = "long term off"
STUDENT = "modern, answers of the student"
MODERN = "modern"
ONE_PASS = "paper, one pass over each batch"
PAPER = "paper"
PARTS = ("answers", "scores", "loss", "backward", "optimizer", "rest")
TRL_LOSS = "TRL's, reverse KL"
KL = "ours, reverse KL"
KL_AND_LOG_Q = "ours, reverse KL and log q"
FULL_LOGITS = "full logits, reverse KL"
LOSSES = (TRL_LOSS, KL, KL_AND_LOG_Q, FULL_LOGITS)

MOST_TIME, MOST_MEMORY = 1.3, 1.1

NOTES = """
One update of `MiniLLMTrainer` beside one of TRL's `DistillationTrainer(beta=1)`: the same models (Qwen3's
architecture, random weights), prompts, batch and length of answers. No answer ends early, so that all do the
same work. The trainers take turns in one process, in another order each round, after a round that is not
timed; a turn is four updates, or a whole cycle of rollouts if that is longer. A ratio is that of two times of
one round: the median over rounds, with its quartiles. On a machine that others use, CPU time is the clock to
quote.

The bounds of the first table are those this implementation is held to: an update may take 1.3 times as long
as TRL's, and the loss 1.1 times its memory. The rows:

- **long term off**: what TRL's trainer computes, by ours.
- **modern, answers of the student**: the whole objective, on answers drawn as TRL does
  (`teacher_mix_alpha=0`).
- **modern**: with answers from the mixture of teacher and student, which TRL does not have.
- **paper, one pass over each batch**: `mode="paper"` with as many answers an update as the others.
- **paper**: as it is, four passes over four batches of answers; the column *answers* has what is drawn for an
  update.

While answers of the mixture are written the teacher reads them, a few tokens at a time, and what it makes of
them is kept for the scores and the loss. TRL's trainer has it read once too, but at one go, which makes
better use of a processor: so the ratio grows with the teacher's share of the work. `modern` draws half of the
answers by other coins than the other half, in one batch, since answers that share coins stay out of each
other's baseline; where the coins differ both models are run. The student reads what it wrote once more for
its scores.
"""

PARTS_SAID = """
Milliseconds of an update, {clock} time. *answers*: tokens are drawn, with all that is around it. *scores*:
the student, and both heads, on the finished answers, for rewards and weights; the teacher's hidden states
are kept for the loss. *loss*: the forward pass, TRL's with the teacher's in it. *rest*: gradient clipping
and bookkeeping.
"""

LOSS_SAID = """
In: hidden states at N positions. Out: gradients of the student's hidden states and of its head, (V, width).
*Ours* is `extensions.trl.divergence.tiled_divergences`, which besides gives log q, log p and entropy; *TRL's*
is its `ChunkedDivergenceFunction`, on a CPU the one in plain torch. *Full logits* is what one would first
write: it keeps them for the backward pass, where the tiles make them anew. So for few positions, where memory
is no concern, it takes up to two fifths less time than ours. All agree on the KL, and on its gradient, before
they are timed.

**Peak** is the memory that one forward and backward adds to its inputs, in a process of its own{how}; the
gradients themselves are in it, and in the last column.
"""

#: (device, case or size, trainer or loss, clock) -> row of the CSV
Rows = dict[tuple[str, str, str, str], dict[str, Any]]


def keyed(rows: list[dict[str, Any]], case: str, who: str) -> Rows:
    return {(r["device"], r[case], r[who], r["clock"]): r for r in rows}


def read(path: Path, case: str, who: str) -> Rows:
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return keyed(list(csv.DictReader(file)), case, who)


def ratio(row: dict[str, Any]) -> str:
    """The ratio with its quartiles."""
    return f"{float(row['ratio']):.2f} ({float(row['q25']):.2f}-{float(row['q75']):.2f})"


def peak_ratio(rows: Rows, device: str, size: str, loss: str, clock: str) -> float:
    peaks = (float(rows[device, size, who, clock]["peak_bytes"]) for who in (loss, TRL_LOSS))
    return next(peaks) / next(peaks)


def claims(steps: Rows, losses: Rows, device: str) -> str:
    """The bounds set for this implementation, and what was measured."""
    clock = "cpu" if device == "cpu" else "wall"
    lines = []
    for who in (OFF, STUDENT, MODERN, ONE_PASS):
        for d, case, name, c in steps:
            if (d, name, c) == (device, who, clock):
                row = steps[d, case, name, c]
                verdict = "within" if float(row["ratio"]) <= MOST_TIME else "**beyond**"
                lines.append([f"time of an update, {who}: {case}", ratio(row), f"<= {MOST_TIME}", verdict])
    for who in (KL, KL_AND_LOG_Q):
        for d, size, name, c in losses:
            if (d, name, c) == (device, who, clock):
                found = peak_ratio(losses, d, size, name, c)
                verdict = "within" if found <= MOST_MEMORY else "**beyond**"
                what = f"peak memory of the loss, {who}: {size}"
                lines.append([what, f"{found:.2f}", f"<= {MOST_MEMORY}", verdict])
    return table(["as a ratio to TRL's", "measured", "bound", ""], lines)


def updates(rows: Rows, device: str) -> str:
    """Every trainer of every case."""
    clocks = ("cpu", "wall") if device == "cpu" else ("wall",)
    lines = []
    for d, case, who, clock in rows:
        if (d, clock) != (device, clocks[0]):
            continue
        of = [rows[device, case, who, c] for c in clocks]
        spent = [
            f"{float(r['median_ms']):.0f} ({float(r['q25_ms']):.0f}-{float(r['q75_ms']):.0f})" for r in of
        ]
        lines.append([case, who, f"{float(of[0]['answers']):g}", *spent, *(ratio(r) for r in of)])
    head = [*(f"{c} time, ms" for c in clocks), *(f"ratio, {c} time" for c in clocks)]
    return table(["case", "", "answers", *head], lines)


def parts(rows: Rows, device: str) -> str:
    """Where the time of an update goes."""
    clock = "cpu" if device == "cpu" else "wall"
    lines = [
        [case, who, *(f"{float(row[f'{part}_ms']):.0f}" for part in PARTS)]
        for (d, case, who, c), row in rows.items()
        if (d, c) == (device, clock)
    ]
    return table(["case", "", *PARTS], lines)


def loss_table(rows: Rows, device: str, sizes: dict[str, dict[str, Any]]) -> str:
    """Every loss of every size."""
    clock = "cpu" if device == "cpu" else "wall"
    lines = []
    for (d, size, who, c), row in rows.items():
        if (d, c) != (device, clock):
            continue
        of = sizes[size]
        shape = (
            f"{of['positions']}, {of['vocabulary']:,}, {of['width']}, {of['teacher_width']}, {of['dtype']}"
        )
        times = [f"{float(row['median_ms']):.0f}", ratio(row)]
        peaks = [f"{int(row['peak_bytes']) / 1e6:.0f}", f"{peak_ratio(rows, d, size, who, c):.2f}"]
        lines.append([shape, who, *times, *peaks, f"{int(row['gradient_bytes']) / 1e6:.0f}"])
    head = ["N, V, widths of student and teacher", "loss", f"{clock} time, ms", "ratio"]
    return table([*head, "peak, MB", "ratio", "gradients, MB"], lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """The table of what was measured just now."""
    return updates(keyed(rows, "case", "trainer"), rows[0]["device"])


def write_page(out: Path) -> None:
    """The page, from the files beside it."""
    said = ["# Time and memory of a training step", "`python -m recipes.bench.minillm_speed`", NOTES.strip()]
    for device in ("cpu", "cuda"):
        said.append(f"## {'CPU' if device == 'cpu' else 'CUDA'}")
        place = out / f"minillm_speed_{device}.json"
        if not place.exists():
            said.append(
                f"Not run yet: `python -m recipes.bench.minillm_speed --device {device}`. There TRL's "
                "loss is a Triton kernel\nand ours is plain torch, so nothing above says how the two compare."
            )
            continue
        where = json.loads(place.read_text())
        steps = read(out / f"minillm_speed_{device}.csv", "case", "trainer")
        losses = read(out / f"minillm_speed_loss_{device}.csv", "size", "loss")
        clock = "cpu" if device == "cpu" else "wall"
        how = " (`VmHWM`)" if device == "cpu" else " (`torch.cuda.max_memory_allocated`)"
        rounds = next(iter(steps.values()))["rounds"], next(iter(losses.values()))["rounds"]
        said += [
            f"{where['where']}. {rounds[0]} rounds of the trainers, {rounds[1]} of the losses.",
            claims(steps, losses, device),
            "### An update",
            cases(where["cases"]),
            updates(steps, device),
            "### Where it goes",
            PARTS_SAID.strip().format(clock="CPU" if clock == "cpu" else clock),
            parts(steps, device),
            "### The loss alone",
            LOSS_SAID.strip().format(how=how),
            loss_table(losses, device, where["sizes"]),
        ]
    (out / "minillm_speed.md").write_text("\n\n".join(said) + "\n")


def cases(of: dict[str, dict[str, Any]]) -> str:
    """What was run."""
    lines = [
        [
            name,
            *(f"{case[who][0]} x {case[who][1]}" for who in ("student", "teacher")),
            f"{case['vocabulary']:,}",
            *(str(case[what]) for what in ("batch", "prompt", "new")),
            "bfloat16" if case["bf16"] else "float32",
        ]
        for name, case in of.items()
    ]
    head = ["case", "student, layers x width", "teacher", "tokens in the vocabulary", "batch"]
    return table([*head, "prompt", "answer", ""], lines)
