"""An SB3 algorithm's run: evaluated, logged and checkpointed between rollouts, and resumed exactly."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.utils.tensorboard import SummaryWriter

from .evaluation import play
from .rng import Arrays, generator_state, rng_state, set_generator_state, set_rng_state
from .run_folder import MetricsTable, RunFolder


class Checkpoints(BaseCallback):
    """Evaluates, logs and saves a checkpoint every so many steps.

    It acts between two rollouts, where SB3 holds nothing that is not in the model, its replay and its
    environments; at a later moment a transition would be under way.

    Args:
        folder: where everything goes.
        eval_envs: one episode is played in each.
        eval_seed: which episodes.
        every: steps between two checkpoints.
        total: steps of the whole run.
        checkpoint: the one that the run goes on from, or None.
    """

    def __init__(
        self,
        folder: RunFolder,
        eval_envs: gym.vector.VectorEnv,
        eval_seed: int,
        every: int,
        total: int,
        checkpoint: Path | None,
    ) -> None:
        super().__init__()
        self.folder, self.eval_envs, self.eval_seed = folder, eval_envs, eval_seed
        self.every, self.total = every, total
        progress: dict[str, Any] = {"step": None, "wall_s": 0.0, "cpu_s": 0.0, "evaluations": []}
        if checkpoint is not None:
            progress = json.loads((checkpoint / "progress.json").read_text())
        self.begun_at: int | None = progress["step"]
        self.next_at = 0 if self.begun_at is None else self._after(self.begun_at)
        self.evaluations: list[dict[str, Any]] = progress["evaluations"]
        self._wall_before, self._cpu_before = progress["wall_s"], progress["cpu_s"]
        self._wall_start, self._cpu_start = time.perf_counter(), time.process_time()

    @property
    def wall_s(self) -> float:
        """Seconds since the run began, pauses left out."""
        return self._wall_before + time.perf_counter() - self._wall_start

    @property
    def cpu_s(self) -> float:
        """Processor seconds since the run began."""
        return self._cpu_before + time.process_time() - self._cpu_start

    def make_logger(self) -> Logger:
        """SB3's logger, to metrics.csv and TensorBoard events; what came after the checkpoint is hidden."""
        table, path = MetricsTable(self.folder, self.begun_at), str(self.folder.path)
        events = TensorBoardOutputFormat(path)
        if self.begun_at is not None:
            events.writer.close()
            events.writer = SummaryWriter(path, purge_step=self.begun_at + 1)
        return Logger(path, [_CsvOutput(table), events])

    def _after(self, step: int) -> int:
        return (step // self.every + 1) * self.every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.next_at:
            self._look_and_save()

    def _on_training_end(self) -> None:
        if not self.evaluations or self.evaluations[-1]["step"] < self.num_timesteps:
            self._look_and_save()

    def _look_and_save(self) -> None:
        self.next_at = self._after(self.num_timesteps)
        greedy = play(
            self.eval_envs, lambda obs: self.model.predict(obs, deterministic=True)[0], self.eval_seed
        )
        episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        training = float(np.mean(episodes)) if episodes else None
        self.evaluations.append(
            {
                "step": self.num_timesteps,
                "greedy": greedy.mean_return,
                "greedy_length": greedy.mean_length,
                "training": training,
            }
        )
        self.logger.record("eval/mean_reward", greedy.mean_return)
        self.logger.record("eval/mean_ep_length", greedy.mean_length)
        self.model.dump_logs()
        self._show(greedy.mean_return, training)
        with self.folder.new_checkpoint(self.num_timesteps) as checkpoint:
            save_checkpoint(checkpoint, self.model)
            progress = {
                "step": self.num_timesteps,
                "wall_s": self.wall_s,
                "cpu_s": self.cpu_s,
                "evaluations": self.evaluations,
            }
            (checkpoint / "progress.json").write_text(json.dumps(progress))

    def _show(self, greedy: float, training: float | None) -> None:
        done = self.num_timesteps - (self.begun_at or 0)
        elapsed = time.perf_counter() - self._wall_start
        left = (
            "" if done == 0 else f", {elapsed * (self.total - self.num_timesteps) / done / 60:.1f} min left"
        )
        print(
            f"{self.num_timesteps:>9,} of {self.total:,} steps: greedy return {greedy:9.2f}, "
            f"while learning {'-' if training is None else f'{training:.2f}':>9}{left}",
            flush=True,
        )


def save_checkpoint(folder: Path, model: BaseAlgorithm) -> None:
    """Everything that decides how the run goes on.

    ``model.zip`` and ``replay.pkl`` are SB3's own formats, which hold pickles: load only your own.
    """
    model.save(folder / "model.zip")
    if getattr(model, "replay_buffer", None) is not None:
        model.save_replay_buffer(folder / "replay.pkl")  # type: ignore[attr-defined]
    state = {**rng_state(), "rng.action_space": generator_state(model.action_space.np_random)}
    assert isinstance(model.env, DummyVecEnv)
    for i, env in enumerate(model.env.envs):
        state.update({f"env{i}.{name}": value for name, value in _env_state(env).items()})
    np.savez(folder / "state.npz", **state)  # type: ignore[arg-type]


def load_checkpoint(
    folder: Path, algorithm: type[BaseAlgorithm], env: DummyVecEnv, device: str
) -> BaseAlgorithm:
    """The model of `save_checkpoint`, about to do what it would have done next.

    Raises:
        ValueError: the environments cannot be put back into the middle of an episode.
    """
    with warnings.catch_warnings():  # SB3 takes an n-step buffer that it saved itself for a custom one
        warnings.filterwarnings("ignore", message="`n_steps=.*` is ignored")
        model = algorithm.load(folder / "model.zip", env=env, device=device, force_reset=False)
    if (folder / "replay.pkl").exists():
        model.load_replay_buffer(folder / "replay.pkl", truncate_last_traj=False)  # type: ignore[attr-defined]
    with np.load(folder / "state.npz", allow_pickle=False) as file:
        state: Arrays = dict(file)
    for i, one in enumerate(env.envs):
        prefix = f"env{i}."
        _set_env_state(one, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    env._reset_seeds()  # loading seeded the next reset; that of the run is long past
    set_generator_state(model.action_space.np_random, state["rng.action_space"])
    set_rng_state(state)  # last: loading draws
    return model


def _env_state(env: gym.Env) -> Arrays:
    """The state of a monitored environment; none where the environment keeps it to itself."""
    assert isinstance(env, Monitor)
    if not hasattr(env.unwrapped, "get_state"):
        return {}
    monitor = {"monitor.rewards": np.array(env.rewards), "monitor.total_steps": np.array(env.total_steps)}
    return {**env.unwrapped.get_state(), **monitor}


def _set_env_state(env: gym.Env, state: Arrays) -> None:
    assert isinstance(env, Monitor)
    if not state:
        raise ValueError(
            f"{env.spec.id if env.spec else env} has no get_state and set_state, so a run in it cannot go on "
            "in the middle of an episode. Begin it anew, or use an environment of envs/, which have them."
        )
    env.rewards = state.pop("monitor.rewards").tolist()
    env.total_steps = int(state.pop("monitor.total_steps"))
    env.needs_reset = False
    env.unwrapped.set_state(state)  # type: ignore[attr-defined]


class _CsvOutput(KVWriter):
    """A row of metrics.csv for each dump of SB3's logger."""

    def __init__(self, table: MetricsTable) -> None:
        self.table = table

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.table.add(step, dict(sorted(key_values.items())))

    def close(self) -> None:
        pass
