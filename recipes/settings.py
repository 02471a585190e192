"""The settings of a run: those given, or those of the run to resume."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from .run_folder import RunFolder


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
        saved = OmegaConf.load(Path(cfg.resume) / "config.yaml")
        has, takes = {str(key) for key in saved}, {str(key) for key in cfg}
        if has != takes:
            raise SystemExit(
                f"resume={cfg.resume}: this is a run of another recipe or version. Its config.yaml has "
                f"{', '.join(sorted(has - takes)) or 'nothing'} beside what this recipe takes, and lacks "
                f"{', '.join(sorted(takes - has)) or 'nothing'}."
            )
        return saved  # type: ignore[return-value]
    if cfg.smoke:
        shrink(cfg)
    return cfg


def one_run(
    recipe: str,
    cfg: DictConfig,
    shrink: Callable[[DictConfig], None],
    train: Callable[[DictConfig, RunFolder], dict[str, Any]],
    report: Callable[[dict[str, Any], Path], None],
) -> dict[str, Any]:
    """Train in Hydra's folder, unless that has ended already, and report; returns the result.

    Args:
        recipe: its name, for the command that goes on with it.
        cfg, shrink: as in :func:`read_config`.
        train: from settings and folder to the result.
        report: prints what a result in a folder came to.

    Raises:
        SystemExit: it was interrupted; says how to go on.
    """
    cfg = read_config(cfg, shrink)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    result = folder.result()
    if result is not None:
        print(f"{folder.path} has ended, as its result.json says: nothing is done again.")
    else:
        began = time.time()
        try:
            result = train(cfg, folder)
        except KeyboardInterrupt:
            raise SystemExit(
                f"\nStopped after {time.time() - began:.0f} s. Go on with: "
                f"{sys.executable} -m recipes.{recipe} resume={folder.path}"
            ) from None
        finally:
            if not any(folder.path.iterdir()):  # refused before it began
                folder.path.rmdir()
    report(result, folder.path)
    return result


def folder_of(resume: str | None, default: str) -> str:
    """Where Hydra is to run: in the folder to resume, which must be one of ours, or in a new one."""
    if resume is None:
        return default
    if not (Path(resume) / "config.yaml").is_file():
        raise SystemExit(f"resume={resume}: there is no config.yaml, so this is not the folder of a run.")
    return resume


OmegaConf.register_new_resolver("folder", folder_of)
