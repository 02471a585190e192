"""Size of what is exported, beside the bits of its weights and its scales."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

from extensions.trl.qdpo.export import export_packed
from extensions.trl.qdpo.layers import quantize_model
from extensions.trl.qdpo.quantizers import WeightScheme

from .minillm_speed_steps import tokenizer
from .qdpo_speed_steps import Case, model

GROUPS = (None, 32)
BITS = (4, 3, 2)


def sizes(case: Case) -> list[dict[str, Any]]:
    """A row for each grid: bytes of the quantized layers in the file, and what bits and scales come to."""
    rows: list[dict[str, Any]] = []
    words = tokenizer([f"w{i}" for i in range(case.vocabulary - 3)])
    for bits in BITS:
        for group in GROUPS:
            made = model(case)
            layers = quantize_model(made, WeightScheme(bits, group))
            with tempfile.TemporaryDirectory() as folder:
                export_packed(made, words, folder)
                found = _bytes_by_tensor(Path(folder))
            weights = sum(layer.latent.numel() for layer in layers.values())
            scales = sum(layer.scale.numel() for layer in layers.values())
            packed = sum(n for name, n in found.items() if ".weight_" in name)
            wanted = weights * bits / 8 + sum(n for name, n in found.items() if name.endswith("weight_scale"))
            rows.append(
                {
                    "bits": bits,
                    "group_size": group or "channel",
                    "weights": weights,
                    "scales": scales,
                    "file_bytes": packed,
                    "wanted_bytes": wanted,
                    "ratio": packed / wanted,
                    "float32_bytes": 4 * weights,
                }
            )
    return rows


def _bytes_by_tensor(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                tensor = file.get_tensor(name)
                found[name] = tensor.numel() * tensor.element_size()
    return found
