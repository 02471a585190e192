"""Give a quantized chat model its conversation back: QDPO, and what it is compared with.

    python -m recipes.qdpo                                     # model=tiny method=qdpo_target_kd bits=3
    python -m recipes.qdpo method=kd bits=2 group_size=32      # see conf/qdpo/method
    python -m recipes.qdpo +method.args.divergence_window=4
    python -m recipes.qdpo model=hf model.name=NAME data=prompts data.path=mine.jsonl
    python -m recipes.qdpo resume=runs/qdpo/tiny-qdpo_target_kd-3bit/seed0-20260101-120000

A model's linear layers are rounded to a few bits, and the low-bit model is trained by the method to answer
as its full-precision self does. With model=tiny that is a small chat model of dialogues made by a grammar,
trained from scratch in minutes on one core. It leaves a folder: config.yaml, metrics.csv, TensorBoard events,
checkpoints of transformers, the trained model packed (packed/) and its report card, result.json and
scores.png. A run that was killed goes on from its last checkpoint to the very result it would have had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from extensions.trl.qdpo.report import report_card

from .conf.qdpo_schema import check, register
from .pictures import plot_quantized
from .qdpo_export import export
from .qdpo_run import Run
from .qdpo_scores import evaluate, recovered
from .run_folder import RunFolder, where_it_ran
from .settings import one_run

PRINTED = ("agreement", "flip_rate", "forward_kl", "reverse_kl", "rubric", "win_rate", "perplexity")


def train(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Train to the end, going on with what the folder holds; returns what ``result.json`` holds."""
    check(cfg)
    torch.set_num_threads(cfg.threads)
    run = Run(cfg, folder)
    folder.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    print(f"{cfg.method.name}, {cfg.bits} bits, seed {cfg.seed}, {folder.path}")
    policy = run.policy()
    scores = {"trained": evaluate(run, policy)}
    if cfg.before:
        scores["quantized"] = evaluate(run, run.quantized())
        before = scores["quantized"]["agreement"]
        scores["trained"]["recovered"] = recovered(scores["trained"]["agreement"], before)
    packed = export(run, policy) if cfg.export else None
    if cfg.report_card:
        card = report_card(
            policy,
            run.teacher,
            run.tokenizer,
            run.data.report,
            max_new_tokens=cfg.data.max_new_tokens,
            judge=run.data.judge,
            batch_size=cfg.evaluation_batch_size,
        )
        card.save(folder.path)
    result = {
        "method": cfg.method.name,
        "bits": cfg.bits,
        "group_size": cfg.group_size,
        "seed": cfg.seed,
        "scores": scores,
        "packed": packed,
        "parameters": run.teacher.num_parameters(),
        **run.progress,
        "threads": cfg.threads,
        **where_it_ran(),
    }
    plot_quantized(folder.path / "scores.png", result)
    folder.write("result.json", json.dumps(result, indent=2) + "\n")
    return result


def report(result: dict[str, Any], folder: Path) -> None:
    """Print what the run came to."""
    print(f"\n{'':<12}" + "".join(f"{name:>12}" for name in PRINTED))
    for who, scores in result["scores"].items():
        print(f"{who:<12}" + "".join(f"{scores[n]:>12.4f}" if n in scores else f"{'-':>12}" for n in PRINTED))
    if result["packed"]:
        print(f"packed: {result['packed']['bytes']:,} bytes, read back equal: {result['packed']['equal']}")
    print(f"{result['wall_s'] / 60:.1f} minutes of training; see {folder / 'scores.png'}")


def shrink(cfg: DictConfig) -> None:
    """Make it a matter of seconds, for a look at whether all works."""
    if cfg.model.name is None:
        cfg.model.folder, cfg.model.steps = None, 1
    cfg.data.train, cfg.data.valid, cfg.data.test = 16, 4, 4
    cfg.data.max_new_tokens = min(cfg.data.max_new_tokens, 8)
    cfg.updates, cfg.evaluate_every, cfg.log_every = min(cfg.updates, 4), 2, 1
    cfg.batch_size, cfg.micro_batch_size = min(cfg.batch_size, 8), None


@hydra.main(version_base="1.3", config_path="conf/qdpo", config_name="qdpo")
def main(cfg: DictConfig) -> float | None:
    """One run; returns the greedy agreement, for Hydra's sweepers."""
    try:
        return one_run("qdpo", cfg, shrink, train, report)["scores"]["trained"]["agreement"]
    except ValueError as error:
        raise SystemExit(str(error)) from None


register()

if __name__ == "__main__":
    main()
