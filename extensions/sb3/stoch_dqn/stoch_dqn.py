from __future__ import annotations

import copy
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.dqn.dqn import DQN
from torch.nn import functional as F

from ...optim import clip_grad_norm_
from ...stochmax.actions import ActionCodec
from ...stochmax.candidates import SampledMaximum, resolve
from ...stochmax.diagnostics import measure_shortfall
from ...stochmax.maximise import Maximum
from ...stochmax.memories import CachedArgmax
from ...stochmax.sources import Query, Source
from .checks import (
    check_arguments,
    check_finite,
    check_parameters,
    check_replay,
    widen_replay_actions,
    with_sources_of,
)
from .policies import CnnPolicy, MlpPolicy, MultiInputPolicy, StochDQNPolicy, StochQNetwork

SelfStochDQN = TypeVar("SelfStochDQN", bound="StochDQN")


class StochDQN(DQN):
    """
    Stochastic Deep Q-Network (StochDQN): DQN that acts and bootstraps on O(log n) sampled actions instead of
    all n

    Paper: https://arxiv.org/abs/2405.10310 (Fourati, Aggarwal, Alouini, ICML 2024)

    All arguments of :class:`stable_baselines3.DQN` keep their names, order and defaults. Those of StochDQN
    follow, by keyword only.

    :param candidates: What the maximum is taken over, when acting and when bootstrapping:
        ``"log"`` ceil(log2 n) uniform actions a state and as many of the replay; ``"all"`` all n, exactly;
        ``"auto"`` ``"all"`` up to 512 actions, else ``"log"``; ``"paper"`` and ``"authors_code"``, the
        published variants; or a list of sources from ``extensions.stochmax``.
    :param eval_candidates: How many uniform and how many remembered actions ``predict(deterministic=True)``
        looks at, or ``"all"``. It is exact if there are no more actions than that.
    :param head: How Q(s, a) is computed: ``"linear"``, ``"row"``, ``"low_rank"``, ``"feature"``, or
        ``"auto"``, which goes by the codec and n (see :func:`extensions.stochmax.choose_head`).
    :param head_kwargs: Keyword arguments of the head: ``dueling`` (row), ``rank`` (low_rank), ``hidden``
        (feature)
    :param action_codec: What the action ids stand for (``MixedRadix``, ``BoxBins``, ``ActionFeatures``),
        if the values of actions should generalise; plain ids by default
    :param legal_actions: Ids legal everywhere, or a callable from observations to ids (B, L), padded with -1.
        All are legal by default.
    :param epsilon_per_env: Flip the coin of epsilon-greedy for each environment instead of once for all, as
        SB3's DQN does
    :param diagnostics_interval: Measure omega, beta and the memory hit rate on a probe batch every so many
        updates; 0 for never
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    q_net: StochQNetwork
    q_net_target: StochQNetwork
    policy: StochDQNPolicy
    action_space: spaces.Discrete

    def __init__(
        self,
        policy: str | type[StochDQNPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 32,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        target_update_interval: int = 10000,
        exploration_fraction: float = 0.1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        max_grad_norm: float = 10,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        candidates: str | Sequence[Source] = "log",
        eval_candidates: int | str = 1024,
        head: str = "auto",
        head_kwargs: dict[str, Any] | None = None,
        action_codec: ActionCodec | None = None,
        legal_actions: Any = None,
        epsilon_per_env: bool = True,
        diagnostics_interval: int = 1000,
    ) -> None:
        self.candidates = candidates
        self.eval_candidates = eval_candidates
        self.head = head
        self.head_kwargs = head_kwargs
        self.action_codec = action_codec
        self.legal_actions = legal_actions
        self.epsilon_per_env = epsilon_per_env
        self.diagnostics_interval = diagnostics_interval
        self._warned_of_bias = False
        self._exploring = np.zeros(0, dtype=bool)  # (n_envs,) whose last action was drawn at random
        try:
            super().__init__(
                policy,
                env,
                learning_rate,
                buffer_size,
                learning_starts,
                batch_size,
                tau,
                gamma,
                train_freq,
                gradient_steps,
                replay_buffer_class,
                replay_buffer_kwargs,
                optimize_memory_usage,
                n_steps,
                target_update_interval,
                exploration_fraction,
                exploration_initial_eps,
                exploration_final_eps,
                max_grad_norm,
                stats_window_size,
                tensorboard_log,
                policy_kwargs,
                verbose,
                seed,
                device,
                _init_setup_model,
            )
        except AssertionError as error:
            if "action spaces" in str(error):
                error.add_note(
                    "Wrap the environment so that its actions are one Discrete(n), decode them, and say "
                    "what they are: action_codec=MixedRadix(nvec) for MultiDiscrete, BoxBins(...) for a Box."
                )
            raise

    def _setup_model(self) -> None:
        # Sources are resolved here, not in the policy, so that what they remember is saved with the model.
        if isinstance(self.candidates, str):
            sources = resolve(self.candidates, int(self.action_space.n))
            self.candidates = "all" if sources is None else sources
        else:
            self.candidates = copy.deepcopy(self.candidates)  # they will be bound, and remember
        user_kwargs = self.policy_kwargs
        check_arguments(self, user_kwargs, self.candidates)
        self.policy_kwargs = {
            **user_kwargs,
            "candidates": self.candidates,
            "eval_candidates": self.eval_candidates,
            "head": self.head,
            "head_kwargs": self.head_kwargs,
            "action_codec": copy.deepcopy(self.action_codec),  # ours stays on the CPU, to be saved
            "legal_actions": self.legal_actions,
            "training_device": self.device,
        }
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs = user_kwargs
        self.policy.sample_replay = self._sample_replay_actions
        self._caches = any(isinstance(s, CachedArgmax) for s in self.policy.maximum.sources)
        if self._caches:
            widen_replay_actions(self.replay_buffer)

    # -- acting --

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Epsilon-greedy over the candidates; with ``deterministic=True`` the best of many more candidates.

        :param observation: the input observation
        :param state: The last states (can be None, used in recurrent policies)
        :param episode_start: The last masks (can be None, used in recurrent policies)
        :param deterministic: Whether or not to return deterministic actions.
        :return: the model's action and the next state
            (used in recurrent policies)
        """
        if deterministic:
            return self.policy.predict(observation, state, episode_start, deterministic)
        vectorized = self.policy.is_vectorized_observation(observation)
        first = next(iter(observation.values())) if isinstance(observation, dict) else observation
        n_batch = len(first) if vectorized else 1
        coins = np.random.rand(n_batch if self.epsilon_per_env else 1) < self.exploration_rate
        self._exploring = np.broadcast_to(coins, n_batch)
        if self._exploring.all():
            action = self._random_actions(observation, n_batch)
        else:
            action, state = self.policy.predict(observation, state, episode_start, deterministic)
            action = action.reshape(n_batch)
            if self._exploring.any():
                action[self._exploring] = self._random_actions(observation, n_batch)[self._exploring]
        return (action if vectorized else action.squeeze(0)), state

    def _random_actions(self, observation: np.ndarray | dict[str, np.ndarray], n_batch: int) -> np.ndarray:
        if self.legal_actions is None:
            return np.array([self.action_space.sample() for _ in range(n_batch)])
        obs, _ = self.policy.obs_to_tensor(observation)
        return self.policy.explore(obs, n_batch).cpu().numpy()  # type: ignore[union-attr]

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        for source in self.policy.maximum.sources:
            source.new_step()
        if self.num_timesteps < learning_starts:
            action = self._random_actions(self._last_obs, n_envs)  # type: ignore[arg-type]
            return action, action
        action, buffer_action = super()._sample_action(learning_starts, action_noise, n_envs)
        best = ~self._exploring
        self.policy.exploited.add(action[best])
        if best.any() and self.policy.hears_what_is_executed():
            obs, _ = self.policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]
            rows = th.as_tensor(best, device=self.device)
            obs = {key: o[rows] for key, o in obs.items()} if isinstance(obs, dict) else obs[rows]
            self.policy.executed(obs, action[best])
        return action, buffer_action

    def _sample_replay_actions(self, k: int) -> th.Tensor:
        """
        Actions of k transitions drawn from the replay: (k,), or none while it is empty.
        """
        buffer = self.replay_buffer
        assert buffer is not None
        size = buffer.buffer_size if buffer.full else buffer.pos
        if size == 0:  # at first, or loaded without a replay
            return self.policy._recall(k)
        slot = np.random.randint(size * self.n_envs, size=k)
        actions = buffer.actions[slot // self.n_envs, slot % self.n_envs, 0]
        return th.as_tensor(actions, dtype=th.int64, device=self.device)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self.policy.sample_replay = self._sample_replay_actions  # again, if the model is a copy
        total_timesteps, callback = super()._setup_learn(*args, **kwargs)
        check_finite(self._last_obs)  # type: ignore[arg-type]
        return total_timesteps, callback

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        check_finite(new_obs, reward)
        for i, done in enumerate(dones):
            if done and infos[i].get("terminal_observation") is not None:
                check_finite(infos[i]["terminal_observation"], env=i)
        if self._caches:
            # Carried in the replay beside the action: the cached arg max, at first the action itself, and the
            # slot.
            slot = replay_buffer.pos * self.n_envs + np.arange(self.n_envs)
            buffer_action = np.stack([buffer_action, buffer_action, slot], axis=-1)  # (n_envs, 3)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    # -- training --

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        assert self.replay_buffer is not None
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        # Update learning rate according to schedule
        self._update_learning_rate(self.policy.optimizer)

        losses = []
        for _ in range(gradient_steps):
            # Sample replay buffer
            replay_data = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            # For n-step replay, discount factor is gamma**n_steps (when no early termination)
            discounts = replay_data.discounts if replay_data.discounts is not None else self.gamma

            with th.no_grad():
                next_q_values = self._next_q_values(replay_data)  # (B, 1)
                target_q_values = replay_data.rewards + (1 - replay_data.dones) * discounts * next_q_values

            # Only the Q-values of the actions taken are computed, and only their rows have a gradient
            current_q_values = self.q_net(
                replay_data.observations, replay_data.actions[:, :1].long()
            )  # (B, 1)

            # Compute Huber loss (less sensitive to outliers)
            loss = F.smooth_l1_loss(current_q_values, target_q_values)
            losses.append(loss.detach())

            # Optimize the policy
            self.policy.optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.before_update()
            self.policy.optimizer.step()

            self._n_updates += 1
            if self.diagnostics_interval and self._n_updates % self.diagnostics_interval == 0:
                self._log_diagnostics(replay_data)

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(th.stack(losses).tolist()))

    def _next_q_values(self, replay_data: Any) -> th.Tensor:
        """
        The stochastic maximum of the target network at the next observations: (B, 1).
        """
        states = self.q_net_target.state_tower(replay_data.next_observations)
        return self._maximise_next(self.q_net_target.head, states, replay_data).value.unsqueeze(1)

    def _maximise_next(self, head: th.nn.Module, states: th.Tensor, replay_data: Any) -> Maximum:
        """
        Maximise over the candidates of the next states, and let the memories know.
        """
        best = self.policy.maximum.bootstrap(head, states, self._bootstrap_query(replay_data))
        if self._caches:
            assert self.replay_buffer is not None
            slot = replay_data.actions[:, 2].cpu().numpy()
            self.replay_buffer.actions.reshape(-1, 3)[slot, 1] = best.action.cpu().numpy()
        return best

    def _bootstrap_query(self, replay_data: Any) -> Query:
        actions = replay_data.actions.long()
        return Query(
            len(actions),
            actions.device,
            replay_data.next_observations,
            replay=self._sample_replay_actions,
            minibatch=actions[:, 0],
            cached=actions[:, 1] if self._caches else None,
            terminal=replay_data.dones.reshape(-1).bool(),
            flatten=self.policy.flatten,
        )

    def _on_step(self) -> None:
        """
        Update the exploration rate and target network if needed.
        This method is called in ``collect_rollouts()`` after each step in the environment.
        """
        self._n_calls += 1
        # Account for multiple environments
        # each call to step() corresponds to n_envs transitions
        if self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0:
            polyak_update(*self.policy.dense_parameters(), self.tau)
            self.policy.sync_rows(self.tau)
            # Copy running stats, see GH issue #996
            polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
        self.logger.record("rollout/exploration_rate", self.exploration_rate)

    def _log_diagnostics(self, replay_data: Any) -> None:
        touched = self.policy.rows_touched()
        if touched is not None:
            self.logger.record("train/rows_touched", touched)
        if not isinstance(self.policy.maximum, SampledMaximum):
            return
        with th.no_grad():
            states = self.q_net_target.state_tower(replay_data.next_observations)
        tables = self.q_net.head.tables
        known = tables[0].touched_ids() if tables else None
        query = self._bootstrap_query(replay_data)
        with th.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            numpy_state = np.random.get_state()  # looking must not change the run
            shortfall = measure_shortfall(self.policy.maximum, self.q_net_target.head, states, query, known)
            np.random.set_state(numpy_state)
        self.logger.record("train/omega", shortfall.omega.item())
        self.logger.record("train/beta", shortfall.beta.item())
        self.logger.record("train/memory_hit_rate", shortfall.memory_hit_rate.item())
        doubt = None if self._warned_of_bias else shortfall.doubt(self.gamma)
        if doubt is not None:
            self._warned_of_bias = True
            warnings.warn(doubt, stacklevel=2)

    def learn(
        self: SelfStochDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "StochDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfStochDQN:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    # -- saving and loading --

    @classmethod
    def load(cls: type[SelfStochDQN], path: Any, *args: Any, **kwargs: Any) -> SelfStochDQN:
        try:
            return super().load(path, *args, **kwargs)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(
                f"{path} is not a whole model file ({error}): it was cut short or is no model at all"
            ) from error

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        if not isinstance(load_path_or_dict, dict):
            _, load_path_or_dict, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        if "policy" in load_path_or_dict:
            policy = with_sources_of(self.policy, load_path_or_dict["policy"])
            check_parameters(policy, self, exact_match)
            load_path_or_dict = {**load_path_or_dict, "policy": policy}
        super().set_parameters(load_path_or_dict, exact_match, device)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        previous = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        try:
            check_replay(self.replay_buffer, path, int(self.action_space.n), self._caches)
        except ValueError:
            self.replay_buffer = previous
            raise
