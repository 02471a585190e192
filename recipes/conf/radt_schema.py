"""The types of the settings of ``python -m recipes.radt``, and what none of them may be."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from . import checks
from .schema import EnvConfig

ACTORS = ("radt", "dt")


@dataclass
class TransformerConfig:
    """`extensions.torchrl.RADTConfig`; DT takes the first six, and returns shifted and scaled alike."""

    n_embd: int = 64
    n_layer: int = 2
    n_head: int = 1
    activation: str = "gelu"
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    seqra: bool = True
    stepra: bool = True
    alpha_gate: bool = True
    norm: str = "layernorm"
    placement: str = "post"
    return_embedding: str = "linear"
    attention_window: int | None = None
    architecture: str = "radt"


@dataclass
class RADTRecipeConfig:
    """What ``python -m recipes.radt`` takes."""

    env: EnvConfig = field(default_factory=EnvConfig)
    #: radt, or dt: TorchRL's DTActor, trained and evaluated alike
    actor: str = "radt"
    #: what to learn from: a name below runs/data, collected if it is not there; or a path to such a folder,
    #: to a Minari dataset's folder or to a D4RL HDF5 file; null: what env has
    dataset: str | None = None
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    #: steps of a window, in training and in sight when acting
    context: int = 10
    #: steps of a training window; null: context. More make sense with transformer.attention_window=context
    train_context: int | None = None
    #: "none", "exact" or "sliding"; see extensions.torchrl.RADTPolicy
    cache: str = "exact"
    #: what returns are divided by, as in the paper, or null: they are standardised by the data's
    return_scale: float | None = 1000.0
    steps: int = 5_000
    batch_size: int = 64
    lr: float = 1e-2
    weight_decay: float = 1e-4
    #: share of the steps over which the learning rate grows; a cosine follows
    lr_warmup: float = 0.1
    lr_end: float = 0.01
    #: the most that the norm of the gradient may be
    clip_norm: float = 0.25
    #: steps between two evaluations; each also logs and saves a checkpoint
    eval_every: int = 1_000
    #: targets of these evaluations, evenly spaced from the 5th to the 95th percentile of the data's returns,
    #: and episodes for each; the checkpoint that follows them best is the selected one
    eval_targets: int = 4
    eval_episodes: int = 3
    #: the same at the end, for the last and the selected checkpoint; two targets beyond the data are added
    test_targets: int = 7
    test_episodes: int = 20
    seed: int = 0
    device: str = "auto"
    #: threads of torch; with one, a run repeats bit for bit on like machines
    threads: int = 1
    #: the whole path in seconds, on episodes of random play
    smoke: bool = False
    #: the folder of a run to go on with
    resume: str | None = None


def check(cfg: DictConfig) -> None:
    """Refuse settings that make no sense.

    Raises:
        ValueError: which, and why.
    """
    counts = ("context", "steps", "batch_size", "eval_every", "eval_episodes", "test_episodes", "threads")
    checks.at_least(cfg, counts)
    checks.at_least(cfg, ("eval_targets", "test_targets"), 2)  # the ends of the range
    if cfg.actor not in ACTORS:
        raise ValueError(f"actor={cfg.actor}: it must be one of {', '.join(ACTORS)}")
    if cfg.train_context is not None and cfg.train_context < cfg.context:
        raise ValueError(f"train_context={cfg.train_context}: it must be at least context={cfg.context}")
    if cfg.cache == "sliding" and cfg.transformer.attention_window != cfg.context:
        raise ValueError(
            f"cache=sliding needs transformer.attention_window={cfg.context}, which is context, and windows "
            f"to train on that are longer, such as train_context={2 * cfg.context}"
        )
    if cfg.return_scale is not None and not cfg.return_scale > 0:
        raise ValueError(f"return_scale={cfg.return_scale}: it must be above 0, or null")
    checks.seed_and_device(cfg)
    checks.schedule(cfg)
    for name in ("lr", "clip_norm"):
        if not cfg[name] > 0:
            raise ValueError(f"{name}={cfg[name]}: it must be above 0")


def register() -> None:
    """Tell Hydra of the schema."""
    ConfigStore.instance().store(name="schema_radt", node=RADTRecipeConfig)
