"""What policy gradient buys over exact token-level reverse KL: the runs behind minillm_exact.md.

    OMP_NUM_THREADS=1 python -m recipes.bench.minillm_exact [--quick | --report] [--out DIR]

In the exact language a student with too little memory for its teacher is taught by each method, from the same
start and with as many updates, and every divergence is summed up over all answers there are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extensions.trl.minillm.modes import MODES
from extensions.trl.minillm.objective import Objective, Scores

from ..exact_language import (
    ExactLanguage,
    Rollouts,
    TableStudent,
    answer_losses,
    exact_metrics,
    logits_at,
    sample,
    scores_of,
)
from .minillm_exact_page import BENCH, COMPARED, TOKEN_LEVEL, draw, write_page
from .minillm_page import EXACT, commit_and_machine, read_about, read_rows, write_about, write_rows

SEEDS, UPDATES, WARM_UP, BATCH = 5, 1500, 300, 256
LEARNING_RATE = 0.03
OTHER_RATES = (0.01, 0.1)
LOOK_EVERY = 75

Row = dict[str, Any]


PAPER = Objective()


@dataclass(frozen=True)
class Method:
    """How a student is taught.

    Args:
        loss: a divergence of each token, ``None`` for MiniLLM's.
        objective: of MiniLLM.
        alpha: the teacher's share in the answers; 1 for its own answers.
        batches, passes: answers of so many updates are drawn at once and learned from so many times.
    """

    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    objective: Objective = PAPER
    alpha: float = 0.0
    batches: int = 1
    passes: int = 1


def forward_kl(log_q: Tensor, log_p: Tensor, tokens: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def likelihood(log_q: Tensor, log_p: Tensor, tokens: Tensor) -> Tensor:
    return -log_q.gather(-1, tokens[..., None])[..., 0]


def jensen_shannon(log_q: Tensor, log_p: Tensor, tokens: Tensor) -> Tensor:
    log_middle = torch.logaddexp(log_q, log_p) - torch.log(torch.tensor(2.0))
    return (log_p.exp() * (log_p - log_middle) + log_q.exp() * (log_q - log_middle)).sum(-1) / 2


def mode(name: str) -> Method:
    """A mode of the trainer, with its answers and passes."""
    values = MODES[name]
    switches = {key: values[key] for key in Objective.names() if key in values}
    for key in ("epsilon", "reward_clip"):
        switches[key] = values[key] or None
    objective = Objective(importance=values["importance_weights"], **switches)
    return Method(
        None, objective, values["teacher_mix_alpha"], values["rollout_batches"], values["num_iterations"]
    )


_EQ7 = Objective(epsilon=None)
_EQ3 = replace(_EQ7, length_normalization=False)

METHODS: dict[str, Method] = {
    "word-level KD": Method(forward_kl, alpha=1.0),
    "SeqKD": Method(likelihood, alpha=1.0),
    "GKD (on-policy, JSD 0.5)": Method(jensen_shannon),
    TOKEN_LEVEL: Method(objective=replace(_EQ7, long_term=False)),
    "mode paper": mode("paper"),
    "mode reference": mode("reference"),
    "mode modern": mode("modern"),
    "eq. 7": Method(objective=_EQ7, alpha=0.2),
    "eq. 7, alpha 0": Method(objective=_EQ7),
    # Without it, the reward at t has to be in the returns.
    "eq. 7, no single step": Method(
        objective=replace(_EQ7, single_step=False, returns="inclusive"), alpha=0.2
    ),
    "eq. 7, no length norm": Method(objective=_EQ3, alpha=0.2),
    "eq. 3 (exact gradient)": Method(objective=_EQ3),
    "eq. 3, leave-one-out": Method(objective=replace(_EQ3, baseline="leave_one_out")),
    "eq. 3, alpha 0.2, products": Method(
        objective=replace(_EQ3, importance="prefix", baseline="leave_one_out"), alpha=0.2
    ),
    "plain policy gradient": Method(objective=replace(_EQ3, single_step=False, returns="inclusive")),
}


def batches(
    method: Method, language: ExactLanguage, student: TableStudent, batch: int, random: torch.Generator
) -> Iterator[tuple[Rollouts, Scores]]:
    """Answers to learn from, for ever, by the student as it is when they are drawn."""
    prompts = torch.arange(language.prompts).repeat(batch // language.prompts)
    while True:
        drawn = [sample(language, student, prompts, method.alpha, random) for _ in range(method.batches)]
        # Only MiniLLM's own objectives have weights.
        alpha = 0.0 if method.loss is not None else method.alpha
        known = [scores_of(language, student, one, alpha) for one in drawn]
        for _ in range(method.passes):
            yield from zip(drawn, known, strict=True)


def teach(
    method: Method,
    language: ExactLanguage,
    student: TableStudent,
    updates: int,
    random: torch.Generator,
    rate: float = LEARNING_RATE,
    look: Callable[[int], None] = lambda update: None,
) -> None:
    """Adam with a learning rate that falls to 0 in a line."""
    optimizer = torch.optim.Adam(student.parameters(), rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 - update / updates)
    answers = batches(method, language, student, BATCH, random)
    look(0)
    for update in range(1, updates + 1):
        rollouts, scores = next(answers)
        logits = logits_at(student, rollouts)
        if method.loss is None:
            losses = answer_losses(method.objective, language, rollouts, logits, scores)
        else:
            log_p = language.log_p[rollouts.prompts[:, None], rollouts.nodes]
            each = method.loss(logits.log_softmax(-1), log_p, rollouts.tokens)
            losses = (each * rollouts.mask).sum(1)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        schedule.step()
        if update % LOOK_EVERY == 0 or update == updates:
            look(update)


def run(name: str, seed: int, updates: int, warm_up: int, rate: float = LEARNING_RATE) -> list[Row]:
    """Teach one student, and look at it on the way."""
    language = ExactLanguage(seed=seed)
    student = TableStudent(language)
    teach(METHODS["SeqKD"], language, student, warm_up, torch.Generator().manual_seed(seed))
    start = time.process_time()
    rows: list[Row] = []

    def look(update: int) -> None:
        seconds = time.process_time() - start
        metrics = exact_metrics(language, student)
        here = {"method": name, "learning_rate": rate, "seed": seed, "update": update}
        rows.append({**here, **metrics, "cpu_s": seconds})

    random = torch.Generator().manual_seed(1000 + seed)
    teach(METHODS[name], language, student, updates, random, rate, look)
    return rows


def run_all(seeds: int, updates: int, warm_up: int) -> list[Row]:
    """Every method and seed; those compared at other learning rates too."""
    rows: list[Row] = []
    for name in METHODS:
        for seed in range(seeds):
            rows += run(name, seed, updates, warm_up)
            if name in COMPARED:
                for rate in OTHER_RATES:
                    rows += run(name, seed, updates, warm_up, rate)[-1:]
        last = [row for row in rows if row["learning_rate"] == LEARNING_RATE][-1]
        print(f"{name}: reverse KL {last['reverse_kl']:.3f}, {last['cpu_s']:.1f} s a run", flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few updates: the path, no figures")
    parser.add_argument("--report", action="store_true", help="run nothing, make the page of what there is")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    seeds, updates, warm_up = (2, 20, 10) if options.quick else (SEEDS, UPDATES, WARM_UP)

    if not options.report:
        options.out.mkdir(parents=True, exist_ok=True)
        write_rows(options.out / "minillm_exact.csv", run_all(seeds, updates, warm_up))
        write_about(options.out / "minillm_exact.json", commit_and_machine(*EXACT, BENCH))
    rows = read_rows(options.out / "minillm_exact.csv")
    write_page(options.out / "minillm_exact.md", rows, read_about(options.out / "minillm_exact.json"))
    draw(options.out / "minillm_exact.png", rows)


if __name__ == "__main__":
    main()
