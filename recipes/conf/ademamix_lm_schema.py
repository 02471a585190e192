"""The types of the settings of ``python -m recipes.ademamix_lm``, and what none of them may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from . import checks


@dataclass
class AdamWConfig:
    """``torch.optim.AdamW``."""

    name: str = "adamw"
    #: the highest learning rate of the schedule
    lr: float = MISSING
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    #: of matrices; the gains of norms do not decay
    weight_decay: float = 0.1
    #: one kernel for the whole step; that of AdEMAMix is compiled at the first use
    fused: bool = True


@dataclass
class AdEMAMixConfig(AdamWConfig):
    """``extensions.optim.AdEMAMix``."""

    name: str = "ademamix"
    beta3: float = MISSING
    alpha: float = MISSING
    #: steps over which alpha and beta3 grow, counted from ``switch_at`` if it is set; null: none
    alpha_warmup: float | None = None
    beta3_warmup: float | None = None


@dataclass
class ModelConfig:
    """`recipes.decoder.Decoder`."""

    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 4


@dataclass
class DataConfig:
    """`recipes.corpus.Corpus`."""

    vocab_size: int = 128
    seed: int = 0
    concentration: float = 20.0
    n_classes: int = 16
    n_successors: int = 8
    repeat: int = 8
    p_repeat: float = 0.04


@dataclass
class AdEMAMixLMConfig:
    """What ``python -m recipes.ademamix_lm`` takes."""

    optimizer: Any = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    steps: int = MISSING
    #: sequences of a step, and tokens to predict in each
    batch_size: int = 8
    context: int = 64
    #: sequences that all runs are evaluated on
    eval_sequences: int = 512
    #: steps between two evaluations; each also logs and saves a checkpoint
    eval_every: int = MISSING
    #: share of the steps over which the learning rate grows; a cosine follows
    lr_warmup: float = 0.05
    #: the last learning rate, as a share of the highest
    lr_end: float = 0.01
    #: the most that the norm of the gradient may be; null: anything
    clip_norm: float | None = 1.0
    #: the step before which AdamW, with the same settings, is exchanged for AdEMAMix
    switch_at: int | None = None
    #: the step whose batch is exchanged for the probe, which is held out else
    inject_at: int | None = None
    #: steps between two looks at the loss on the probe; null: none
    probe_every: int | None = None
    seed: int = 0
    device: str = "auto"
    #: threads of torch; with one, a run repeats bit for bit on like machines
    threads: int = 1
    #: the whole path in seconds
    smoke: bool = False
    #: the folder of a run to go on with
    resume: str | None = None


def check(cfg: DictConfig) -> None:
    """Refuse settings that make no sense together.

    Raises:
        ValueError: which, and why.
    """
    checks.at_least(cfg, ("steps", "batch_size", "context", "eval_sequences", "eval_every", "threads"))
    for name, value in cfg.model.items():
        if value < 1:
            raise ValueError(f"model.{name}={value}: it must be at least 1")
    d_model, n_heads = cfg.model.d_model, cfg.model.n_heads
    if d_model % (2 * n_heads):
        raise ValueError(f"model.d_model={d_model}: it must be a multiple of twice model.n_heads={n_heads}")
    checks.seed_and_device(cfg)
    checks.schedule(cfg)
    if cfg.clip_norm is not None and cfg.clip_norm <= 0:
        raise ValueError(f"clip_norm={cfg.clip_norm}: it must be above 0, or null")
    if cfg.switch_at is not None and cfg.optimizer.name != "ademamix":
        raise ValueError("switch_at is the step of the switch to AdEMAMix: it needs optimizer=ademamix")
    if cfg.switch_at is not None and not 1 < cfg.switch_at <= cfg.steps:
        raise ValueError(f"switch_at={cfg.switch_at}: it must be above 1 and at most steps={cfg.steps}")
    if cfg.inject_at is not None and not 1 <= cfg.inject_at <= cfg.steps:
        raise ValueError(f"inject_at={cfg.inject_at}: it must be from 1 to steps={cfg.steps}")
    if cfg.inject_at is not None and cfg.probe_every is None:
        raise ValueError("inject_at without probe_every: nothing would look at what became of the probe")
    if cfg.probe_every is not None and cfg.probe_every < 1:
        raise ValueError(f"probe_every={cfg.probe_every}: it must be at least 1, or null")


def register() -> None:
    """Tell Hydra of the schemas."""
    store = ConfigStore.instance()
    store.store(name="schema_ademamix_lm", node=AdEMAMixLMConfig)
    store.store(group="optimizer", name="schema_adamw", node=AdamWConfig)
    store.store(group="optimizer", name="schema_ademamix", node=AdEMAMixConfig)
