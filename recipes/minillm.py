"""Distil a teacher into a smaller language model: MiniLLM, and five methods to compare it with.

    python -m recipes.minillm                                  # model=tiny data=instructions method=minillm
    python -m recipes.minillm method=kd seed=1                 # or sft, seqkd, gkd, distillation
    python -m recipes.minillm +method.args.length_normalization=false
    python -m recipes.minillm model=gpt2 data=dolly
    python -m recipes.minillm model=gpt2 model.teacher=DIR teacher.steps=0 data=files data.path=mine.jsonl
    python -m recipes.minillm resume=runs/minillm/tiny-instructions-minillm/seed0-20260101-120000

The teacher is finetuned on instructions and their answers, so is the student, and then it learns from the
teacher by the method. With model=tiny both are made from scratch and the instructions by a grammar, so that
nothing is downloaded and it takes minutes on one core. It leaves a folder: config.yaml, metrics.csv,
TensorBoard events, the models of the phases as checkpoints of transformers, result.json and scores.png. A
run that was killed goes on from its last checkpoint to the very result it would have had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from .conf.minillm_schema import register
from .distill_run import Run, seconds
from .distill_scores import evaluate
from .pictures import plot_distillation
from .run_folder import RunFolder, where_it_ran
from .settings import one_run

PRINTED = ("reverse_kl", "forward_kl", "valid", "true_forward_kl", "rouge_l", "distinct_4", "mean_length")


def train(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Train to the end, going on with what the folder holds; returns what ``result.json`` holds."""
    run = Run(cfg, folder)
    folder.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    print(f"{cfg.method.name}, seed {cfg.seed}, {folder.path}")
    teacher = run.teacher()
    student = run.student(teacher)
    scores = {"student": evaluate(cfg, run.data, run.tokenizer, student, teacher)}
    if cfg.evaluation.others:
        for name, model in (("warm_start", run.warm_start()), ("teacher", teacher)):
            scores[name] = evaluate(cfg, run.data, run.tokenizer, model, teacher)
    result = {
        "method": cfg.method.name,
        "seed": cfg.seed,
        "updates": cfg.updates,
        "scores": scores,
        "parameters": {
            name: model.num_parameters() for name, model in (("student", student), ("teacher", teacher))
        },
        "phases": run.progress,
        **{name: round(seconds(run.progress, name), 2) for name in ("wall_s", "cpu_s")},
        "threads": cfg.threads,
        **where_it_ran(),
    }
    plot_distillation(folder.path / "scores.png", result)
    folder.write("result.json", json.dumps(result, indent=2) + "\n")
    return result


def report(result: dict[str, Any], folder: Path) -> None:
    """Print what the run came to."""
    print(f"\n{'':<12}" + "".join(f"{name:>16}" for name in PRINTED))
    for who, scores in result["scores"].items():
        print(f"{who:<12}" + "".join(f"{scores[n]:>16.3f}" if n in scores else f"{'-':>16}" for n in PRINTED))
    print(f"{result['wall_s'] / 60:.1f} minutes of training; see {folder / 'scores.png'}")


def shrink(cfg: DictConfig) -> None:
    """Make it a matter of seconds, for a look at whether all works."""
    for name in ("teacher_text", "teacher", "student_text", "sft"):
        cfg[name].steps = min(cfg[name].steps, 20)
        cfg[name].batch_size = min(cfg[name].batch_size, 16)
    cfg.updates, cfg.log_every, cfg.save_every = min(cfg.updates, 10), 5, 5
    cfg.batch_size = min(cfg.batch_size, 16)
    cfg.micro_batch_size = min(cfg.micro_batch_size or 16, 16)
    cfg.evaluation.prompts = min(cfg.evaluation.prompts, 16)
    cfg.evaluation.samples = min(cfg.evaluation.samples, 2)
    cfg.evaluation.texts = min(cfg.evaluation.texts, 16)


@hydra.main(version_base="1.3", config_path="conf", config_name="minillm")
def main(cfg: DictConfig) -> float | None:
    """One run; returns the reverse KL, for Hydra's sweepers."""
    try:
        return one_run("minillm", cfg, shrink, train, report)["scores"]["student"]["reverse_kl"]
    except ValueError as error:
        raise SystemExit(str(error)) from None


register()

if __name__ == "__main__":
    main()
