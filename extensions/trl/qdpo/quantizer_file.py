"""Beside latent weights, what they are the latent weights of: ``qdpo.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "qdpo.json"
SETTINGS = (
    *("bits", "group_size", "symmetric", "clip", "scale_dtype", "quantize_lm_head"),
    *("modules_to_not_quantize", "activation_bits", "kv_bits", "train_scales_only"),
)


def write_settings(folder: Path, args: Any) -> None:
    """The quantizer of a configuration, into a folder of weights."""
    (folder / NAME).write_text(json.dumps(_settings(args), indent=2) + "\n")


def check_written(checkpoint: Path, args: Any) -> None:
    """
    A checkpoint was written with the quantizer that is to go on.

    Raises:
        ValueError: it was written with another.
    """
    if not (checkpoint / NAME).exists():
        return
    written = json.loads((checkpoint / NAME).read_text())
    for name, now in _settings(args).items():
        then = written.get(name)
        if then != now:
            raise ValueError(
                f"{checkpoint} was written with {name}={then!r}, and {name} is {now!r} now: to go on from "
                f"it, set {name}={then!r}."
            )


def _settings(args: Any) -> dict[str, Any]:
    names = args.modules_to_not_quantize
    listed = {"modules_to_not_quantize": None if names is None else list(names)}
    return {name: getattr(args, name) for name in SETTINGS} | listed


def check_not_latent(path: str | None) -> None:
    """
    A model to be quantized is not the latent weights of one that was.

    Raises:
        ValueError: it is.
    """
    if path and (Path(path) / NAME).exists():
        raise ValueError(
            f"{path} holds the latent weights of a low-bit model, which are not the full-precision model. "
            "To go on with its training pass the full-precision model and "
            "train(resume_from_checkpoint=...). To start from the trained low-bit model, export it with "
            "export_packed, and give that to load_packed (extensions.trl.qdpo.starting_points)."
        )
