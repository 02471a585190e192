"""A dataset's folder: a TensorDict's memory maps, and ``metadata.json`` beside them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDict

from .layout import returns_of

METADATA = "metadata.json"


def save(data: TensorDict, metadata: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a dataset, whole or not at all; returns the metadata with what was counted added to it.

    Raises:
        FileExistsError: there is a dataset already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or store elsewhere")
    metadata = {**metadata, **summary(data), "sha256": fingerprint(data)}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    data.memmap(str(partial))
    (partial / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
    os.rename(partial, folder)
    return metadata


def load(folder: Path) -> tuple[TensorDict, dict[str, Any]]:
    """Data, memory-mapped, and metadata of a dataset that :func:`save` wrote.

    Raises:
        ValueError: the arrays are not those that were stored.
    """
    metadata = json.loads((folder / METADATA).read_text())
    again = "remove the folder and collect the data again"
    try:
        data = TensorDict.load_memmap(str(folder))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read ({error}): {again}") from None
    if fingerprint(data) != metadata["sha256"]:
        raise ValueError(f"{folder}: the arrays have another SHA-256 than metadata.json says: {again}")
    return data, metadata


def summary(data: TensorDict) -> dict[str, Any]:
    """Episodes, transitions, and how the returns of the episodes are distributed."""
    returns = returns_of(data).numpy()
    counts, edges = np.histogram(returns, bins=20)
    return {
        "episodes": len(returns),
        "transitions": len(data),
        "returns": {
            **{f"p{q}": round(float(np.percentile(returns, q)), 2) for q in (5, 50, 95)},
            "min": round(float(returns.min()), 2),
            "max": round(float(returns.max()), 2),
            "histogram": {"edges": edges.round(2).tolist(), "counts": counts.tolist()},
        },
    }


def fingerprint(data: TensorDict) -> str:
    """SHA-256 of the names, shapes, dtypes and bytes of all arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(data.flatten_keys(".").items()):
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        digest.update(array.contiguous().numpy().data)
    return digest.hexdigest()
