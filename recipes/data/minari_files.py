"""Datasets in Minari's format: read, and written so that Minari reads them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tensordict import TensorDict

from .layout import Episode, flatten

METADATA = "metadata.json"


def read(folder: Path) -> tuple[TensorDict, dict[str, Any]]:
    """The episodes of a Minari dataset's folder, its name and environment.

    Raises:
        ValueError: observations are no vectors, an episode makes no sense, or the file is damaged.
    """
    from minari.dataset.minari_storage import MinariStorage

    metadata = json.loads((folder / "data" / METADATA).read_text())
    try:
        storage = MinariStorage.read(folder / "data")
        space = storage.observation_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"{folder}: observations are {space}; only vectors are read: flatten them first")
        stored = list(storage.get_episodes(range(storage.total_episodes)))
    except (OSError, KeyError) as error:
        raise ValueError(f"{folder} cannot be read ({error}): is the file whole?") from None
    if not stored:
        raise ValueError(f"{folder} holds no episodes")
    episodes = [_episode(episode, f"{folder}, episode {i}") for i, episode in enumerate(stored)]
    _check_alike(episodes, folder)
    spec = metadata.get("env_spec")
    env_id = json.loads(spec)["id"] if spec else None
    return flatten(episodes), {"name": metadata.get("dataset_id", folder.name), "env_id": env_id}


def _episode(stored: dict[str, Any], where: str) -> Episode:
    """One of Minari's episodes, checked."""
    steps = len(stored["rewards"])
    lengths = {key: len(stored[key]) for key in ("actions", "terminations", "truncations")}
    if steps == 0:
        raise ValueError(f"{where} is empty")
    if set(lengths.values()) != {steps} or len(stored["observations"]) != steps + 1:
        raise ValueError(
            f"{where}: {steps} rewards ask for as many actions, terminations and truncations and for "
            f"{steps + 1} observations, not {lengths} and {len(stored['observations'])}"
        )
    action = np.asarray(stored["actions"])
    return Episode(
        observation=np.asarray(stored["observations"], np.float32),
        action=action.astype(np.int64 if action.dtype.kind in "iu" else np.float32),
        reward=np.asarray(stored["rewards"], np.float32),
        terminated=bool(stored["terminations"][-1]),
    )


def _check_alike(episodes: list[Episode], folder: Path) -> None:
    """Refuse episodes whose observations or actions differ in shape, and actions of mixed kinds."""
    for name in ("observation", "action"):
        first = getattr(episodes[0], name)
        for i, episode in enumerate(episodes):
            array = getattr(episode, name)
            if array.dtype != first.dtype:
                raise ValueError(
                    f"{folder}, episode {i}: {name} should be {first.dtype} as those of episode 0, "
                    f"not {array.dtype}"
                )
            if array.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"{folder}, episode {i}: {name} should have the shape of episode 0's, {first.shape[1:]}, "
                    f"not {array.shape[1:]}"
                )


def export_minari(data: TensorDict, metadata: dict[str, Any], root: str | Path) -> Path:
    """Write a dataset as ``root/NAME`` for Minari, with ``MINARI_DATASETS_PATH=root``, to load as NAME.

    Args:
        data, metadata: from `recipes.data.reading.load_dataset`. The environment must be known, and
            ``("next", "observation")`` there, since Minari keeps an episode's last observation, too.
        root: of Minari datasets.

    Returns:
        The dataset's folder.

    Raises:
        ValueError: data or metadata lack something.
        FileExistsError: the folder is there already.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    if metadata.get("env_id") is None:
        raise ValueError("Minari asks for the spaces of an environment: set metadata['env_id']")
    if ("next", "observation") not in data.keys(include_nested=True):
        raise ValueError(
            "Minari asks for the last observation of an episode: ('next', 'observation') is missing"
        )
    folder = Path(root).resolve() / metadata["name"]  # Minari takes a relative path twice
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or give another root")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    env = gym.make(metadata["env_id"])
    storage = MinariStorage.new(
        partial / "data",
        observation_space=gym.spaces.Box(-np.inf, np.inf, data["observation"].shape[1:], np.float32),
        action_space=env.action_space,
        env_spec=env.spec,
    )
    storage.update_metadata({"dataset_id": metadata["name"], "minari_version": minari.__version__})
    if "algorithm" in metadata:
        storage.update_metadata({"algorithm_name": metadata["algorithm"]})
    lengths = data["episode"].unique_consecutive(return_counts=True)[1].tolist()
    storage.update_episodes(
        EpisodeBuffer(id=i, **_buffer(part)) for i, part in enumerate(data.split(lengths))
    )
    os.rename(partial, folder)
    return folder


def _buffer(episode: TensorDict) -> dict[str, np.ndarray]:
    """An episode's arrays under Minari's names; observations are one more than rewards."""
    following = episode["next"]
    return {
        "observations": np.concatenate([episode["observation"], following["observation"][-1:]]),
        "actions": episode["action"].numpy(),
        "rewards": following["reward"].squeeze(-1).numpy(),
        "terminations": following["terminated"].squeeze(-1).numpy(),
        "truncations": following["truncated"].squeeze(-1).numpy(),
    }
