"""The state of every global random generator, as arrays that load without pickle."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


def rng_state() -> Arrays:
    """States of Python's, numpy's and torch's generators, those of all GPUs included."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "rng.python": _text([version, words, gauss]),
        "rng.numpy": np.asarray(keys),
        "rng.numpy_rest": _text([name, position, has_gauss, cached]),
        "rng.torch": torch.get_rng_state().numpy(),
    }
    if torch.cuda.is_available():
        for i, cuda_state in enumerate(torch.cuda.get_rng_state_all()):
            state[f"rng.cuda{i}"] = cuda_state.numpy()
    return state


def set_rng_state(state: Arrays) -> None:
    """Put the generators into the states that `rng_state` returned.

    Raises:
        RuntimeError: there were other GPUs than there are.
    """
    version, words, gauss = json.loads(state["rng.python"].tobytes())
    random.setstate((version, tuple(words), gauss))
    name, position, has_gauss, cached = json.loads(state["rng.numpy_rest"].tobytes())
    np.random.set_state((name, state["rng.numpy"], position, has_gauss, cached))
    torch.set_rng_state(torch.from_numpy(state["rng.torch"].copy()))
    saved = [name for name in state if name.startswith("rng.cuda")]
    if len(saved) != torch.cuda.device_count() and saved:
        raise RuntimeError(
            f"The checkpoint holds the generators of {len(saved)} GPUs, and there are "
            f"{torch.cuda.device_count()}. Resume on a like machine."
        )
    for i in range(len(saved)):
        torch.cuda.set_rng_state(torch.from_numpy(state[f"rng.cuda{i}"].copy()), i)


def generator_state(generator: np.random.Generator) -> np.ndarray:
    """The state of one numpy generator."""
    return _text(generator.bit_generator.state)


def set_generator_state(generator: np.random.Generator, state: np.ndarray) -> None:
    """Put ``generator`` into the state that `generator_state` returned."""
    generator.bit_generator.state = json.loads(state.tobytes())


def _text(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value, default=lambda array: array.tolist()).encode(), dtype=np.uint8)
