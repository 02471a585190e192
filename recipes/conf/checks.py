"""What no recipe's settings may be."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from omegaconf import DictConfig


def at_least(cfg: DictConfig, names: Iterable[str], least: int = 1) -> None:
    """Raises ValueError where one of some settings is less."""
    for name in names:
        if cfg[name] < least:
            raise ValueError(f"{name}={cfg[name]}: it must be at least {least}")


def seed_and_device(cfg: DictConfig) -> None:
    """Raises ValueError unless there can be such a seed, and is such a device."""
    if not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed={cfg.seed}: it must be from 0 to 2**32 - 1")
    if cfg.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={cfg.device}: it must be cpu, cuda or auto")
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: there is no GPU that torch can use")


def schedule(cfg: DictConfig) -> None:
    """Raises ValueError unless `recipes.schedules.lr_share` can go up and down so."""
    if not 0 <= cfg.lr_warmup < 1 or not 0 <= cfg.lr_end <= 1:
        raise ValueError(
            f"lr_warmup={cfg.lr_warmup} and lr_end={cfg.lr_end} are shares: at least 0, at most 1"
        )
