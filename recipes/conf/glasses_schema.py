"""The types of the settings of ``python -m recipes.glasses``, and what none of them may be."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from envs.sequence_tasks import KINDS
from extensions.glasses.precision import check_dtype, check_reference

from . import checks


@dataclass
class GlassesRecipeConfig:
    """What ``python -m recipes.glasses`` takes."""

    #: a name on the hub or a folder of a causal language model with its tokenizer
    model: str | None = None
    #: where the tokenizer is, if elsewhere; a branch, tag or commit on the hub
    tokenizer: str | None = None
    revision: str | None = None
    #: run code that comes with the model: only of whom you trust
    trust_remote_code: bool = False
    #: that the weights are loaded in; "auto": as they are stored
    load_dtype: str = "auto"
    #: kinds of `envs.sequence_tasks`
    tasks: list[str] = field(default_factory=lambda: ["copy_last", "count_ones"])
    #: "words", or "terse": the sequence and a mark
    prompt_style: str = "words"
    #: put them as a user's turn, by the tokenizer's chat template: for models tuned on conversations
    chat_template: bool = False
    #: of sequences, in elements: [8, 16, 64], from:to:log (doubling) or from:to:step
    lengths: Any = "8:2048:log"
    #: see `recipes.glasses.REMEDIES`
    remedies: list[str] = field(default_factory=lambda: ["dilute:3"])
    #: of gaps, and of answers without a remedy; the first is the reference, and that of answers with one
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    #: items of each task and length; of long ones fewer, so that together they have so many tokens
    trials: int = 16
    trial_tokens: int = 1024
    #: minimal pairs of each task and length; of long ones fewer likewise
    pairs: int = 2
    #: the longest sequence whose sensitivities are taken, and their probes
    sensitivity_tokens: int = 512
    probes: int = 16
    #: whether one of many pairs is found, wherever it stands; of so many pairs, and items of each place
    retrieval: bool = True
    retrieval_lengths: list[int] = field(default_factory=lambda: [8, 32])
    retrieval_trials: int = 8
    #: sequences in one forward
    chunk: int = 8
    seed: int = 0
    device: str = "auto"
    #: threads of torch; null: as many as it takes
    threads: int | None = None
    #: the whole path in seconds, on a random model if none is named
    smoke: bool = False
    #: the folder of a run to go on with
    resume: str | None = None


def lengths_of(setting: Any) -> list[int]:
    """[8, 16, 64], or "8:64:log" for 8, 16, 32, 64, or "8:64:8" for 8, 16, 24, .., 64.

    Raises:
        ValueError: it is neither.
    """
    if OmegaConf.is_list(setting) or isinstance(setting, (list, tuple)):
        if not all(isinstance(n, int) for n in setting):
            raise ValueError(f"lengths={list(setting)}: they must be whole numbers")
        found = list(setting)
    else:
        match = re.fullmatch(r"(\d+):(\d+):(log|\d+)", str(setting))
        if match is None:
            raise ValueError(
                f"lengths={setting}: give [8,16,64], 8:2048:log (doubling) or 8:64:8 (from:to:step)"
            )
        first, last, step = int(match[1]), int(match[2]), match[3]
        if step == "0" or not 1 <= first <= last:
            raise ValueError(
                f"lengths={setting}: the first must be from 1 to the last, and the step at least 1"
            )
        found = [first]
        while (following := 2 * found[-1] if step == "log" else found[-1] + int(step)) <= last:
            found.append(following)
    if not found or found != sorted(set(found)) or found[0] < 2:
        raise ValueError(f"lengths={setting}: give ascending ones, each at least 2")
    return found


def check(cfg: DictConfig) -> None:
    """Refuse settings that make no sense.

    Raises:
        ValueError: which, and why.
    """
    known = [field.name for field in dataclasses.fields(GlassesRecipeConfig)]
    for name in (str(name) for name in cfg if name not in known):
        near = difflib.get_close_matches(name, known, 1)
        raise ValueError(f"{name}: there is no such setting" + (f"; is it {near[0]}?" if near else ""))
    if cfg.model is None and not cfg.smoke:
        raise ValueError(
            "model: name one, as model=Qwen/Qwen2.5-0.5B or model=path/to/folder; smoke=true looks at a "
            "random one"
        )
    if not cfg.tasks or set(cfg.tasks) - set(KINDS):
        raise ValueError(f"tasks={list(cfg.tasks)}: they must be of {', '.join(KINDS)}")
    lengths_of(cfg.lengths)
    if not cfg.dtypes:
        raise ValueError("dtypes=[]: give at least one, such as [float32,bfloat16]")
    try:
        check_reference(cfg.dtypes[0], [check_dtype(name) for name in cfg.dtypes])
    except ValueError as error:
        raise ValueError(f"dtypes={list(cfg.dtypes)}: {error}") from None
    if cfg.load_dtype != "auto" and not isinstance(getattr(torch, cfg.load_dtype, None), torch.dtype):
        raise ValueError(f"load_dtype={cfg.load_dtype}: it must be auto, or a dtype such as bfloat16")
    names = ("trial_tokens", "pairs", "sensitivity_tokens", "retrieval_trials", "chunk")
    checks.at_least(cfg, names)
    checks.at_least(cfg, ("trials", "probes"), 2)
    if cfg.threads is not None:
        checks.at_least(cfg, ("threads",))
    checks.seed_and_device(cfg)


def name_of(model: str | None) -> str:
    """A model's name as that of a folder."""
    return "random" if model is None else re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model"


OmegaConf.register_new_resolver("name_of", name_of)


def register() -> None:
    """Tell Hydra of the schema."""
    ConfigStore.instance().store(name="schema_glasses", node=GlassesRecipeConfig)
