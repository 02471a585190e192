"""Episodes of return dials whose returns are spread over all there are, to learn from offline."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict

from envs.dynamics.world import require_integer, require_number
from envs.return_dial import ReturnDialVector


def behaviour(
    episodes: int, noise: float = 0.25, horizon: int = 20, distractors: int = 16, seed: int = 0
) -> TensorDict:
    """Each episode draws a level u, uniform in [0, 1], and acts clip(2 u - 1 + noise N(0, 1), -1, 1).

    So its mean reward is about u, and its past actions tell as much about the next one as its return does:
    a model can learn to copy them.

    Args:
        episodes: how many, of ``horizon`` steps each.
        noise: standard deviation of a step's action about the level's, in [0, 10].
        horizon, distractors: of the environment, `envs.return_dial.ReturnDial`.
        seed: of the distractors, the levels and the noise.

    Returns: transitions, episode after episode, of batch size ``[episodes * horizon]``: ``observation`` ``(N,
        1 + distractors)`` and ``action`` ``(N, 1)`` float32, ``("next", "reward")`` ``(N, 1)`` float32,
        ``("next", "terminated")``, ``("next", "truncated")`` and ``("next", "done")`` ``(N, 1)`` bool,
        ``episode`` ``(N,)`` int64.
    """
    require_integer("episodes", episodes, 1, 2**31)
    require_number("noise", noise, 0, 10)
    env = ReturnDialVector(episodes, horizon, distractors)
    observation, _ = env.reset(seed=seed)
    rng = env.np_random  # one generator: another of the same seed would draw what the distractors are made of
    level = rng.random((episodes, 1))
    seen, taken, paid = [], [], []
    for _ in range(horizon):
        action = (2 * level - 1 + noise * rng.standard_normal((episodes, 1))).clip(-1, 1).astype(np.float32)
        seen.append(observation)
        taken.append(action)
        observation, reward, *_ = env.step(action)
        paid.append(reward[:, None])

    def flat(steps: list[np.ndarray]) -> torch.Tensor:
        """T arrays of (episodes, d): episode after episode, (N, d) float32."""
        return torch.as_tensor(np.stack(steps, axis=1), dtype=torch.float32).flatten(0, 1)

    number = episodes * horizon
    last = (torch.arange(number) % horizon == horizon - 1)[:, None]  # (N, 1)
    next_ = {
        "reward": flat(paid),
        "terminated": torch.zeros_like(last),
        "truncated": last,
        "done": last.clone(),
    }
    return TensorDict(
        {
            "observation": flat(seen),
            "action": flat(taken),
            "episode": torch.arange(episodes).repeat_interleave(horizon),
            "next": TensorDict(next_, batch_size=[number]),
        },
        batch_size=[number],
    )
