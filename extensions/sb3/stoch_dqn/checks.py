"""What is refused before it does harm: values that are not finite, and files of another model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer


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


def _shapes(state_dict: dict[str, th.Tensor]) -> dict[str, tuple[int, ...]]:
    """
    Shapes in a state dict. Of a table saved by its rows that of the table; none of what has any length.
    """
    free = ("rows.row_ids", "rows.row_values", "_extra_state")
    return {
        name: tuple(t.tolist()) if name.endswith("rows.row_shape") else tuple(t.shape)
        for name, t in state_dict.items()
        if not name.endswith(free)
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
