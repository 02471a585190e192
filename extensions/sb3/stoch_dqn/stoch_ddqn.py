from __future__ import annotations

from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.type_aliases import MaybeCallback

from .stoch_dqn import StochDQN

SelfStochDDQN = TypeVar("SelfStochDDQN", bound="StochDDQN")


class StochDDQN(StochDQN):
    """
    Stochastic Double DQN: :class:`StochDQN` whose online network selects the next action among the candidates
    and whose target network evaluates it

    Paper: https://arxiv.org/abs/2405.10310, with the split of https://arxiv.org/abs/1509.06461
    """

    def _next_q_values(self, replay_data: Any) -> th.Tensor:
        states = self.q_net.state_tower(replay_data.next_observations)
        best = self._maximise_next(self.q_net.head, states, replay_data)
        return self.q_net_target(replay_data.next_observations, best.action.unsqueeze(1))

    def learn(
        self: SelfStochDDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "StochDDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfStochDDQN:
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
