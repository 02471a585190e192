"""What the environments of a learner live through."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from .layout import Episode


class EpisodeRecorder(VecEnvWrapper):
    """Keeps every whole episode of the environments below it; those still open at the end are dropped.

    It belongs below ``VecNormalize`` and sees what is executed: raw observations and rewards, and actions
    that SB3 has clipped already.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.episodes: list[Episode] = []
        self._steps: list[list[tuple[np.ndarray, np.ndarray, float]]] = [[] for _ in range(venv.num_envs)]

    def reset(self) -> VecEnvObs:
        self._observations: Any = self.venv.reset()  # vectors: no dict of them is recorded
        self._steps = [[] for _ in range(self.num_envs)]
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions.copy()
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        before = self._observations
        self._observations, rewards, dones, infos = self.venv.step_wait()
        for i, steps in enumerate(self._steps):
            steps.append((before[i], self._actions[i], rewards[i]))
            if dones[i]:
                truncated = infos[i].get("TimeLimit.truncated", False)
                self.episodes.append(_episode(steps, infos[i]["terminal_observation"], not truncated))
                self._steps[i] = []
        return self._observations, rewards, dones, infos


def _episode(
    steps: list[tuple[np.ndarray, np.ndarray, float]], last: np.ndarray, terminated: bool
) -> Episode:
    observations, actions, rewards = zip(*steps, strict=True)
    return Episode(
        observation=np.stack([*observations, last]).astype(np.float32),
        action=np.stack(actions).astype(np.float32),
        reward=np.array(rewards, np.float32),
        terminated=terminated,
    )
