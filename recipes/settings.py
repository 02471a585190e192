"""The settings of a run: those given, or those of the run to resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def read_config(cfg: DictConfig, shrink: Callable[[DictConfig], None]) -> DictConfig:
    """The settings of this run, or of the run to resume.

    Args:
        cfg: what Hydra put together, with ``resume`` and ``smoke``.
        shrink: makes ``cfg`` a matter of seconds, in place.
    """
    if cfg.resume is not None:
        others = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
        if others:
            raise SystemExit(f"A run goes on as it began: resume={cfg.resume} takes no {' '.join(others)}.")
        return OmegaConf.load(Path(cfg.resume) / "config.yaml")  # type: ignore[return-value]
    if cfg.smoke:
        shrink(cfg)
    return cfg


def folder_of(resume: str | None, default: str) -> str:
    """Where Hydra is to run: in the folder to resume, which must be one of ours, or in a new one."""
    if resume is None:
        return default
    if not (Path(resume) / "config.yaml").is_file():
        raise SystemExit(f"resume={resume}: there is no config.yaml, so this is not the folder of a run.")
    return resume


OmegaConf.register_new_resolver("folder", folder_of)
