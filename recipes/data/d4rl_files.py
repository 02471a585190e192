"""D4RL's HDF5 files: arrays of all transitions, in which ``terminals`` and ``timeouts`` end the episodes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def read(file: Path) -> tuple[TensorDict, dict[str, Any]]:
    """Whole episodes of a D4RL file, and its name. An episode left open at the end is dropped with a warning.

    Raises:
        ValueError: it is not HDF5, or truncated, lacks a key, or no episode ends in it.
    """
    import h5py

    try:
        with h5py.File(file) as opened:
            missing = [key for key in KEYS if key not in opened]
            if missing:
                raise ValueError(f"{file} lacks {', '.join(missing)}; a D4RL file has {', '.join(KEYS)}")
            arrays = {key: opened[key][:] for key in KEYS}
    except OSError as error:
        raise ValueError(f"{file} cannot be read as HDF5 ({error}): is it whole?") from None
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{file}: the arrays are of unequal length: {lengths}")
    for key in ("rewards", "terminals", "timeouts"):
        if arrays[key].shape not in ((len(arrays[key]),), (len(arrays[key]), 1)):
            raise ValueError(f"{file}: {key} should have the shape (N,), not {arrays[key].shape}")

    terminated = torch.from_numpy(arrays["terminals"]).reshape(-1, 1).bool()
    truncated = torch.from_numpy(arrays["timeouts"]).reshape(-1, 1).bool() & ~terminated
    done = terminated | truncated
    ends = done.squeeze(-1).nonzero()
    if not len(ends):
        raise ValueError(f"{file}: no episode ends, by terminals or by timeouts")
    n = int(ends[-1]) + 1
    if n < len(done):
        warnings.warn(
            f"{file}: the last {len(done) - n} transitions are of an open episode: dropped", stacklevel=2
        )
    discrete = arrays["actions"].dtype.kind in "iu"
    data = TensorDict(
        {
            "observation": _float(arrays["observations"]),
            "action": torch.from_numpy(arrays["actions"]).long() if discrete else _float(arrays["actions"]),
            # An episode's number is that of the ends before it.
            "episode": done.squeeze(-1).long().cumsum(0) - done.squeeze(-1).long(),
            "next": {
                "reward": _float(arrays["rewards"]).reshape(-1, 1),
                "terminated": terminated,
                "truncated": truncated,
                "done": done,
            },
        },
        batch_size=[len(done)],
    )
    return data[:n], {"name": file.stem, "env_id": None}


def _float(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))
