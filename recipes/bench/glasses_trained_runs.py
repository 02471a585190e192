"""The runs of `glasses_trained`: how decoders are trained, and what is kept of them."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from extensions.glasses.attention import looking_through

from ..run_folder import where_it_ran
from ..schedules import lr_share
from . import glasses_trained_plan as plan
from .glasses_decoder import Decoders
from .glasses_questions import VOCABULARY, Batch, ask, tokens_of
from .glasses_trained_measures import measured
from .glasses_trained_plan import ARMS, Job
from .training_runs import alone, as_json, result

#: seeds of the data are those of the weights and this
DATA = 1000
WARMUP, CLIP = 0.05, 1.0


def decoders(job: Job, seeds: tuple[int, ...]) -> Decoders:
    """Untrained ones, as the job needs them."""
    classes = plan.LONGEST + 1 if job.task == "count" else 2
    return Decoders(job.positions, VOCABULARY, classes, seeds, places=plan.PLACES)


def batch_of(job: Job, generator: torch.Generator) -> Batch:
    """A training batch of one seed: lengths uniform, answers uniform at each length."""
    size = plan.TRAINING[job.task].batch
    lengths = torch.randint(plan.SHORTEST, plan.LONGEST + 1, (size,), generator=generator)
    answers = lengths + 1 if job.task == "count" else torch.full_like(lengths, 2)  # how many there are
    answers = (torch.rand(size, generator=generator) * answers).long()
    layout = ARMS[job.arm].layout
    return ask(job.task, layout, lengths, answers, generator, tokens_of(layout, plan.LONGEST))


def train(job: Job, seeds: tuple[int, ...]) -> tuple[Decoders, list[list[float]]]:
    """Decoders of all seeds, and their losses in nats, a list a step."""
    model, budget = decoders(job, seeds), plan.TRAINING[job.task]
    generators = [torch.Generator().manual_seed(DATA + seed) for seed in seeds]
    optimizer = torch.optim.Adam(model.parameters(), lr=budget.rate, betas=(0.9, 0.98))
    lens, losses = ARMS[job.arm].lens, []
    with nullcontext() if lens is None else looking_through(model, lens):
        for step in range(1, budget.steps + 1):
            batches = [batch_of(job, generator) for generator in generators]
            ids, question, answer = (
                torch.cat([getattr(batch, name) for batch in batches])
                for name in ("ids", "question", "answer")
            )
            first = None
            if job.positions == "learned":
                high = plan.PLACES - ids.shape[1] + 1
                first = torch.cat([torch.randint(high, (budget.batch,), generator=g) for g in generators])
            state = model(model.embed(ids, first))[torch.arange(len(ids)), question]
            loss = F.cross_entropy(model.readout(state), answer, reduction="none")
            loss = loss.unflatten(0, (len(seeds), -1)).mean(1)  # (S,)
            optimizer.zero_grad()
            loss.sum().backward()
            _clip(model)
            optimizer.param_groups[0]["lr"] = budget.rate * lr_share(step, budget.steps, WARMUP, 0.0)
            optimizer.step()
            losses.append(loss.tolist())
    return model.eval(), losses


@torch.no_grad()
def _clip(model: Decoders) -> None:
    """Gradients to a norm of at most `CLIP`, each seed's own."""
    grads: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.square().flatten(1).sum(1) for g in grads]).sum(0).sqrt()  # (S,)
    share = (CLIP / norm).clamp(max=1)
    for g in grads:
        g.mul_(share.view(-1, *[1] * (g.ndim - 1)))


def trained(job: Job) -> tuple[Decoders, dict[str, Any]]:
    """The job's decoders, from their file if they were trained with today's settings, and facts of that."""
    file = job.file.with_suffix(".safetensors")
    if file.exists():
        with safe_open(file, "pt") as kept:
            facts = json.loads(kept.metadata()["facts"])
            if facts["settings"] == as_json(job.training):
                model = decoders(job, plan.SEEDS)
                model.load_state_dict({name: kept.get_tensor(name) for name in kept.keys()})  # noqa: SIM118
                return model.eval(), facts
    cpu = time.process_time()
    model, losses = train(job, plan.SEEDS)
    last = torch.tensor(losses[-len(losses) // 20 :]).mean(0)  # of a twentieth of the steps
    facts = {
        "settings": as_json(job.training),
        "loss": last.tolist(),
        "curve": losses[:: max(1, len(losses) // 50)],
        "parameters": sum(p[0].numel() for p in model.parameters()),
        "cpu_s": time.process_time() - cpu,
        **where_it_ran(),
    }
    partial = file.with_suffix(".partial")
    save_file(model.state_dict(), partial, {"facts": json.dumps(facts)})
    os.replace(partial, file)
    return model, facts


def run(job: Job) -> None:
    """Train and measure, unless that was done or another process is at it."""
    job.file.parent.mkdir(parents=True, exist_ok=True)
    with alone(job.file.with_suffix(".lock")) as mine:
        if not mine or result(job) is not None:
            return
        model, facts = trained(job)
        cpu = time.process_time()
        singles = [model.of_seed(i).adapter() for i in range(len(model.seeds))]
        tested = {arm: [measured(single, job.task, ARMS[arm]) for single in singles] for arm in job.tested}
        found = {
            "settings": as_json(job.settings),
            "training": facts,
            "tested": tested,
            "cpu_s": facts["cpu_s"] + time.process_time() - cpu,
            **where_it_ran(),
        }
        partial = job.file.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        os.replace(partial, job.file)
    losses = ", ".join(f"{x:.4f}" for x in facts["loss"])
    print(
        f"{job}: losses {losses}; {facts['cpu_s']:.0f} s to train, {found['cpu_s']:.0f} s in all", flush=True
    )
