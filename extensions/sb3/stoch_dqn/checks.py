"""What is refused before it does harm: misplaced arguments, NaN and infinity, files of another model."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer

from ...stochmax.actions import ActionCodec
from ...stochmax.memories import RecentExploited
from ...stochmax.sources import Source

#: arguments of StochDQN that its policy takes from it alone
OF_THE_ALGORITHM = {
    "candidates",
    "eval_candidates",
    "head",
    "head_kwargs",
    "action_codec",
    "legal_actions",
    "training_device",
}


def check_finite(
    obs: np.ndarray | dict[str, np.ndarray], reward: np.ndarray | None = None, env: int | None = None
) -> None:
    """
    Refuse NaN and infinity before they reach the replay, whence they would spread to every weight.

    :param obs: Observations of all environments, or of ``env`` alone
    :param reward: Rewards of all environments
    :param env: The environment, if ``obs`` is of one
    """
    named = (
        {f"observation {key!r}": o for key, o in obs.items()}
        if isinstance(obs, dict)
        else {"observation": obs}
    )
    if reward is not None:
        named["reward"] = reward
    for name, values in named.items():
        finite = np.isfinite(values)
        if not finite.all():
            if env is None:
                env = int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
            raise ValueError(
                f"Environment {env} returned a {name} that is NaN or infinite. Nothing was stored; "
                "wrap the environment in VecCheckNan(env, raise_exception=True) to find the step."
            )


def check_arguments(model: Any, policy_kwargs: dict[str, Any], candidates: Any) -> None:
    """
    Refuse arguments in the wrong place, and those that need what the environment hides

    :param model: The model under construction
    :param policy_kwargs: What the user gave as such
    :param candidates: Names or sources
    """
    if model.action_codec is not None and not isinstance(model.action_codec, ActionCodec):
        raise TypeError(
            f"action_codec must be a codec, such as MixedRadix([10, 10]) or BoxBins(low, high, bins), got "
            f"{model.action_codec!r}"
        )
    misplaced = sorted(policy_kwargs.keys() & OF_THE_ALGORITHM)
    if misplaced:
        raise ValueError(
            f"{misplaced[0]} is an argument of {type(model).__name__} itself: give it there, not in "
            "policy_kwargs"
        )
    normalised = model._vec_normalize_env is not None and model._vec_normalize_env.norm_obs
    by_state = "legal_actions as a function" if callable(model.legal_actions) else None
    if not isinstance(candidates, (str, Source)) and any(isinstance(s, RecentExploited) for s in candidates):
        by_state = "RecentExploited"
    if normalised and by_state:
        raise ValueError(
            f"{by_state} goes by observations, and those of VecNormalize drift with its running statistics. "
            "Use VecNormalize(norm_obs=False), or normalise in the environment by constants."
        )


def check_replay(buffer: ReplayBuffer | None, path: Any, n: int, caches: bool) -> None:
    """
    Refuse a replay buffer of another action space, or with other columns

    :param buffer: The buffer
    :param path: Where it came from
    :param n: Number of actions
    :param caches: Whether there is a memory that keeps its ids in the buffer
    """
    assert buffer is not None
    highest = int(buffer.actions[..., 0].max())
    if highest >= n:
        raise ValueError(
            f"The replay buffer in {path} is of another action space: it holds action {highest}, and there "
            f"are {n}."
        )
    if buffer.actions.shape[-1] != (3 if caches else 1):
        raise ValueError(
            f"The replay buffer in {path} was made {'without' if caches else 'with'} a CachedArgmax memory; "
            f"{'leave it out of' if caches else 'add it to'} candidates to use this buffer."
        )


def check_parameters(theirs: dict[str, th.Tensor], model: BaseAlgorithm, exact_match: bool) -> None:
    """
    Refuse a policy's parameters of another network, as ``load_state_dict`` would, but before any is loaded

    :param theirs: State dict of the policy to be loaded
    :param model: The model it is to be loaded into
    :param exact_match: Whether every parameter must be there
    """
    policy: Any = model.policy
    there, here = _shapes(theirs), _shapes(policy.state_dict())
    for name in sorted(there.keys() | here.keys() if exact_match else there.keys() & here.keys()):
        if there.get(name) != here.get(name):
            raise RuntimeError(
                f"The checkpoint is of another network: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here. Build the model with the checkpoint's number of actions, "
                f"net_arch and head (here: {policy.head_args['head']!r}, n={policy.action_space.n}), or use "
                f"{type(model).__name__}.load, which does."
            )


def with_sources_of(policy: Any, theirs: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """
    A policy's parameters to be loaded into one that may have other candidates: what sources learned is taken
    where the sources are the same, else left as it is

    :param policy: The policy to be loaded into
    :param theirs: State dict of the policy to be loaded
    :return: (nothing is copied)
    """
    here, there = (
        {name: x for name, x in state.items() if name.startswith("learned.")}
        for state in (policy.state_dict(), theirs)
    )
    if _shapes(here) == _shapes(there):
        return theirs
    if here and there:
        warnings.warn(
            "What the sources of the saved candidates learned is left out: here other sources learn, or they "
            f"are at other places. Saved: {_shapes(there)}; here: {_shapes(here)}.",
            stacklevel=3,
        )
    return {**{name: x for name, x in theirs.items() if name not in there}, **here}


def _shapes(state_dict: dict[str, th.Tensor]) -> dict[str, tuple[int, ...]]:
    """
    Shapes in a state dict. Of a table saved by its rows that of the table, of the number of actions the
    number itself; of what has any length only that it is there.
    """
    any_length = ("rows.row_ids", "rows.row_values", "_extra_state")
    values = ("rows.row_shape", "n_actions")
    return {
        name: ()
        if name.endswith(any_length)
        else tuple(t.reshape(-1).tolist())
        if name.endswith(values)
        else tuple(t.shape)
        for name, t in state_dict.items()
    }


def widen_replay_actions(buffer: ReplayBuffer | None) -> None:
    """
    Make room beside each action for its transition's cached arg max and slot.
    """
    if buffer is None or buffer.actions.shape[-1] == 3:
        return
    if buffer.pos or buffer.full:
        raise ValueError("A CachedArgmax memory needs a replay buffer that starts empty")
    buffer.action_dim = 3
    buffer.actions = np.zeros((*buffer.actions.shape[:-1], 3), dtype=np.int64)
