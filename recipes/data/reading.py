"""Datasets from disk, whoever wrote them, in one layout: see `recipes.data.layout.flatten`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensordict import TensorDict

from . import d4rl_files, minari_files, store


def load_dataset(
    name_or_path: str | Path, out: str | Path = "runs/data"
) -> tuple[TensorDict, dict[str, Any]]:
    """The transitions of a dataset and its metadata: ``name``, ``env_id``, ``episodes``, ``returns``, ...

    Args:
        name_or_path: a folder of `recipes.data.collect_replay`, or its name below ``out``; a Minari dataset's
            folder, the one with ``data/`` in it; or a D4RL HDF5 file.
        out: where collected datasets are.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is none of the three, or is damaged; the message says what and where.
    """
    path = Path(name_or_path)
    if not path.exists():
        path = Path(out) / name_or_path
    if not path.exists():
        raise FileNotFoundError(
            f"{name_or_path} is neither a path nor a dataset in {out}; "
            "python -m recipes.data.collect_replay collects some"
        )
    if (path / store.METADATA).is_file():
        data, metadata = store.load(path)
    elif (path / "data" / minari_files.METADATA).is_file():
        data, metadata = minari_files.read(path)
    elif path.is_file():
        data, metadata = d4rl_files.read(path)
    else:
        raise ValueError(
            f"{path} is no dataset: expected metadata.json in it (collected here), data/metadata.json "
            "(Minari), or an HDF5 file (D4RL)"
        )
    check(data, path)
    return data, {**metadata, **store.summary(data)}


def check(data: TensorDict, source: Path) -> None:
    """Refuse what cannot be learned from.

    Raises:
        ValueError: no transitions, a key is missing or has a wrong shape, or a number is not finite.
    """
    n = len(data)
    if n == 0:
        raise ValueError(f"{source} holds no transitions")
    for key, dims in (("observation", 2), ("action", None), (("next", "reward"), 2), ("episode", 1)):
        if key not in data.keys(include_nested=True):
            raise ValueError(f"{source} lacks {key}")
        if dims is not None and data[key].dim() != dims:
            raise ValueError(f"{source}: {key} should have {dims} dimensions, not {tuple(data[key].shape)}")
    action = data["action"]
    if action.dim() != (2 if action.is_floating_point() else 1):
        raise ValueError(
            f"{source}: actions of {action.dtype} and shape {tuple(action.shape)}; expected float (N, A) or "
            f"int (N,)"
        )
    for key in ("observation", "action", ("next", "reward")):
        bad = ~data[key].reshape(n, -1).isfinite().all(-1)
        if bad.any():
            at = int(bad.nonzero()[0])
            name = key if isinstance(key, str) else key[-1]
            raise ValueError(
                f"{source}: {name} of {int(bad.sum())} transitions is NaN or infinite, first in episode "
                f"{int(data['episode'][at])}: leave such episodes out"
            )
