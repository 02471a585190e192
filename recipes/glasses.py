"""Look at a language model through Glasses: what it answers as sequences grow, and why.

    python -m recipes.glasses model=Qwen/Qwen2.5-0.5B              # from the hub, or a folder
    python -m recipes.glasses model=path/to/folder tasks=[copy_last,count_ones] lengths=8:2048:log
    python -m recipes.glasses model=... remedies=[dilute:3,alternate,window:128] dtypes=[float32,float16]
    python -m recipes.glasses smoke=true                           # a random model, in seconds
    python -m recipes.glasses resume=runs/glasses/Qwen-Qwen2.5-0.5B/20260101-120000

It leaves a folder: config.yaml, parts/ (each is kept when it is measured, and not measured again by a run
that goes on), metrics.csv and TensorBoard events by length, report.json, report.md with verdicts that carry
numbers, pictures, and result.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from envs.sequence_tasks import SequenceTask
from extensions.glasses import ChatTask, HFCausalLM
from extensions.glasses.attention import Lens
from extensions.glasses.compare import Remedy
from extensions.glasses.remedies import (
    Alternate,
    BosPrefix,
    Dilute,
    Hint,
    IndexMarkers,
    RepeatQuestion,
    adaptive_temperature,
    log_n_scale,
    sliding_window,
    upcast,
)
from extensions.glasses.report import GlassesReport, ReportConfig

from .conf.glasses_schema import check, lengths_of, register
from .devices import torch_device
from .distill_models import readable
from .random_llama import char_tokenizer, random_llama
from .run_folder import MetricsTable, RunFolder, where_it_ran
from .settings import one_run


def _number(value: str) -> int:
    if not value.isdecimal():
        raise ValueError("a whole number must stand behind the colon, as in window:128")
    return int(value)


def _alone(remedy: Remedy) -> Callable[[str, str | None], Remedy]:
    def of(value: str, _: str | None) -> Remedy:
        if value:
            raise ValueError("nothing may stand behind it")
        return remedy

    return of


def _window(value: str) -> Remedy:
    Lens(window=_number(value))  # refuses what is no window
    return partial(sliding_window, window=_number(value))


def _log_n(value: str) -> Remedy:
    Lens(log_n=_number(value))
    return partial(log_n_scale, trained=_number(value))


def _upcast(value: str) -> Remedy:
    if value not in ("", "last", "attention"):
        raise ValueError("it is of the last layer or of attention: upcast:last, upcast:attention")
    return partial(upcast, layers=value or "last")


#: by name; what stands behind a colon is their number or word
REMEDIES: dict[str, Callable[[str, str | None], Remedy]] = {
    "dilute": lambda every, _: Dilute(_number(every or "3")),
    "alternate": lambda symbol, _: Alternate(symbol or "-"),
    "index": _alone(IndexMarkers()),
    "bos": lambda token, bos: BosPrefix(token or bos or "<s>"),
    "repeat": lambda question, _: RepeatQuestion(question or None),
    "hint": _alone(Hint()),
    "adaptive": _alone(adaptive_temperature),
    "window": lambda w, _: _window(w),
    "log_n": lambda n, _: _log_n(n),
    "upcast": lambda layers, _: _upcast(layers),
}


def remedy(setting: str, bos: str | None = None) -> Remedy:
    """Of a name, such as "dilute:3".

    Args:
        setting: the name, and behind a colon its number or word; windows and log_n need one.
        bos: the tokenizer's beginning of a sequence.

    Raises:
        ValueError: there is none, or not with this.
    """
    name, _, value = setting.partition(":")
    if name not in REMEDIES:
        raise ValueError(f"remedies={setting}: they must be of {', '.join(REMEDIES)}")
    try:
        return REMEDIES[name](value, bos)
    except ValueError as error:
        raise ValueError(f"remedies={setting}: {error}") from None


def load(cfg: DictConfig) -> HFCausalLM:
    """The model that is looked at, with its tokenizer."""
    device = torch_device(cfg.device)
    if cfg.model is None:
        characters = char_tokenizer()
        random: Any = random_llama(characters, seed=cfg.seed)
        return HFCausalLM(random.to(device), characters)
    logging.disable_progress_bar()
    kind = {"revision": cfg.revision, "trust_remote_code": cfg.trust_remote_code}
    with readable("model", cfg.model, "a checkpoint"):
        model: Any = AutoModelForCausalLM.from_pretrained(cfg.model, dtype=cfg.load_dtype, **kind)
    path = cfg.tokenizer or cfg.model
    named = "tokenizer" if cfg.tokenizer else "model"
    with readable(named, path, "a tokenizer, which tokenizer=NAME_OR_FOLDER gives if it is elsewhere,"):
        tokenizer = AutoTokenizer.from_pretrained(path, **kind)
    return HFCausalLM(model.to(device).eval(), tokenizer)


def report_config(cfg: DictConfig, tokenizer: Any) -> ReportConfig:
    """What is looked at."""

    def task(kind: str) -> Any:
        plain = SequenceTask(kind, prompt_style=cfg.prompt_style, seed=cfg.seed)
        if cfg.chat_template and not tokenizer.chat_template:
            raise ValueError("chat_template=true: this tokenizer has none; leave it out")
        return ChatTask(plain, tokenizer) if cfg.chat_template else plain

    numbers = ("trials", "trial_tokens", "pairs", "sensitivity_tokens", "probes", "retrieval_trials", "chunk")
    return ReportConfig(
        tasks=[task(kind) for kind in cfg.tasks],
        lengths=lengths_of(cfg.lengths),
        remedies=[remedy(name, tokenizer.bos_token) for name in cfg.remedies],
        dtypes=list(cfg.dtypes),
        retrieval=task("kv_recall") if cfg.retrieval else None,
        retrieval_lengths=list(cfg.retrieval_lengths),
        seed=cfg.seed,
        **{name: cfg[name] for name in numbers},
    )


def look(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Measure what the folder does not hold yet; returns what ``result.json`` holds."""
    check(cfg)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    for name in cfg.remedies:
        remedy(name)  # refuses what there is not, before a model is loaded
    model = load(cfg)
    config = report_config(cfg, model.tokenizer)
    folder.write("config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    print(
        f"{cfg.model or 'a random model'}, {sum(p.numel() for p in model.module.parameters()):,} parameters"
    )
    began, cpu = time.time(), time.process_time()

    def progress(name: str, done: int, of: int) -> None:
        print(f"{done}/{of} {name}: {time.time() - began:.0f} s", flush=True)

    report = GlassesReport(model, config).run(folder.path / "parts", progress)
    report.save(folder.path)
    log(report, folder)
    result = {
        "model": cfg.model,
        "verdicts": report.verdicts,
        "wall_s": round(time.time() - began, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "seed": cfg.seed,
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        **where_it_ran(),
    }
    folder.write("result.json", json.dumps(result, indent=2) + "\n")
    return result


def log(report: GlassesReport, folder: RunFolder) -> None:
    """Gaps and accuracies as metrics whose step is the length."""
    rows: dict[int, dict[str, float]] = {}
    for name, part in report.parts.items():
        kind, _, task = name.partition("/")
        for i, length in enumerate(part["lengths"] if kind in ("gap", "answers") else ()):
            row = rows.setdefault(length, {})
            if kind == "gap":
                row[f"{task}/gap"] = part["gap"][part["reference"]][i][-1]
                row |= {f"{task}/snr_{dtype}": snr[i][-1] for dtype, snr in part["snr"].items()}
            else:
                for arm, values in part["arms"].items():
                    for dtype, accuracy in values["accuracy"].items():
                        row[f"{task}/accuracy/{arm}/{dtype}"] = accuracy[i]
    table = MetricsTable(folder)
    with SummaryWriter(str(folder.path)) as events:
        for length, row in sorted(rows.items()):
            table.add(length, row)
            for name, value in row.items():
                events.add_scalar(name, float(value), length)


def report(result: dict[str, Any], folder: Path) -> None:
    """Print what was seen."""
    print("\n" + "\n".join(result["verdicts"]))
    print(f"\n{result['wall_s']:.0f} s; see {folder / 'report.md'}")


def shrink(cfg: DictConfig) -> None:
    """Make it a matter of seconds, for a look at whether all works."""
    cfg.lengths = [n for n in lengths_of(cfg.lengths) if n <= 32] or [4, 8]
    cfg.trials, cfg.pairs, cfg.probes = 2, 1, 2
    cfg.sensitivity_tokens = min(cfg.sensitivity_tokens, 128)
    cfg.retrieval_lengths, cfg.retrieval_trials = [4], 1


@hydra.main(version_base="1.3", config_path="conf/glasses", config_name="glasses")
def main(cfg: DictConfig) -> None:
    """One look."""
    try:
        one_run("glasses", cfg, shrink, look, report)
    except ValueError as error:
        raise SystemExit(str(error)) from None


register()

if __name__ == "__main__":
    main()
