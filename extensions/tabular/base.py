"""What all tabular agents have in common: gymnasium's environments below, SB3's methods above."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .checks import (
    check_callback,
    check_env,
    check_n_actions,
    choose_device,
    choose_table,
    plain_arguments,
    resolve_size,
)
from .draws import Choice, Draw, Draws
from .environments import Step, TensorEnv, as_states, connect
from .maximum import Chosen, best
from .memory import DenseMemory, SparseMemory
from .records import Records
from .saving import Absent, read, restore, write
from .schedules import Schedule, VisitCount, linear, rate_at
from .tables import DenseTable, SparseTable

Callback = Callable[[dict[str, Any], dict[str, Any]], bool | None]
SelfAlgorithm = TypeVar("SelfAlgorithm", bound="TabularAlgorithm")


class TabularAlgorithm:
    """R independent learners, each with a table Q(s, a) of its own, all updated together.

    Not used by itself: see the classes in ``agents.py``, where an update is defined.

    Args:
        env: an id of gymnasium or a ``gymnasium.Env``, for one learner; a ``gymnasium.vector.VectorEnv`` of R
            environments or a `TabularMDP` of R copies, for R learners, of which learner i learns from
            environment i alone. Spaces must be Discrete and start at 0.
        learning_rate: a number in (0, 1], a function of the progress remaining (1 to 0), or
            ``VisitCount(power)``, which is N(s, a)^-power.
        gamma: discount, in [0, 1].
        exploration_fraction: share of the steps over which the exploration rate falls, in [0, 1].
        exploration_initial_eps: exploration rate at the start, in [0, 1].
        exploration_final_eps: exploration rate from then on, in [0, 1].
        seed: learner i has the seed ``seed + i``, and so has its environment; drawn if None. What a learner
            does is a function of its seed, whatever the number of learners and the device.
        device: where the tables are. "auto" is the device of a `TabularMDP`, and the CPU for gymnasium.
        schedule_timesteps: the steps over which the learning rate and the exploration rate go; those of a
            call to ``learn`` by default. If it is given, N + N steps are 2N steps.
        initial_value: what all entries of the tables are at first.
        table: "dense", which holds all entries; "sparse", which holds those written; or "auto", dense up to
            2^24 numbers.
        record_interval: means over so many steps are added to ``records.rows``; 0 for never.

    Attributes:
        num_timesteps: steps made by each learner. A step in which a vector environment only resets is
            counted, but nothing is learned from it.
        exploration_rate: of the last step.
        records: see `Records`; None if ``record_interval`` is 0.

    Raises:
        TypeError, ValueError: an argument or a space that does not fit; the message says what would.
    """

    #: how many tables a method has: 2 for a double method
    n_tables = 1

    def __init__(
        self,
        env: Any,
        learning_rate: float | Schedule | VisitCount = 0.1,
        gamma: float = 0.95,
        exploration_fraction: float = 0.1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        seed: int | None = None,
        device: torch.device | str = "auto",
        *,
        schedule_timesteps: int | None = None,
        initial_value: float = 0.0,
        table: str = "auto",
        record_interval: int = 0,
        _candidates: int | str = "all",
        _memory: int | str = 0,
        _eval_candidates: int = 1024,
        _remember_explored: bool = False,
    ) -> None:
        seed = int(torch.randint(1 << 31, ())) if seed is None else seed
        arguments = plain_arguments(
            {
                name: value
                for name, value in locals().items()
                if name not in ("self", "env", "device") and not name.startswith("_")
            }
        )
        self._arguments = arguments
        self.learning_rate: float | Schedule | VisitCount = arguments["learning_rate"]
        self.gamma, self.seed = arguments["gamma"], arguments["seed"]
        self.exploration_fraction = arguments["exploration_fraction"]
        self.exploration_initial_eps = arguments["exploration_initial_eps"]
        self.exploration_final_eps = arguments["exploration_final_eps"]
        self.schedule_timesteps = arguments["schedule_timesteps"]
        self.device = choose_device(env, device)
        self.env: TensorEnv = connect(env, self.device)
        self.n_runs, self.n_states = int(self.env.n_runs), int(self.env.n_states)
        self.n_actions = int(self.env.n_actions)
        check_n_actions(self.n_actions)
        self.eval_candidates, self.remember_explored = _eval_candidates, _remember_explored

        n, rows = self.n_actions, self.n_runs * self.n_states
        size = resolve_size(_candidates, n)
        self._looks_at_all = _candidates == "all" or size >= n
        width = self.n_tables * (2 if isinstance(self.learning_rate, VisitCount) else 1)
        kind = choose_table(arguments["table"], width * rows * n, self._looks_at_all, type(self).__name__, n)
        values, visits = [arguments["initial_value"]] * self.n_tables, [0.0] * (width - self.n_tables)
        first = torch.tensor(values + visits, dtype=torch.float64)
        self._table = (DenseTable if kind == "dense" else SparseTable)(
            width, self.n_runs, self.n_states, n, first, self.device
        )
        m = 0 if self._looks_at_all else resolve_size(_memory, n)
        memory = DenseMemory if kind == "dense" else SparseMemory
        self._memory = memory(m, rows, self.device) if m else None
        seeds = self.seed + torch.arange(self.n_runs)
        self._draws = Draws(seeds, n, 0 if self._looks_at_all else size, self.device)
        self._runs = torch.arange(self.n_runs, device=self.device)

        self.num_timesteps = 0
        self.exploration_rate = self.exploration_initial_eps
        interval = arguments["record_interval"]
        self.records = Records(interval, self.n_runs, self.device) if interval else None
        self._looks_for_top = bool(interval) and kind == "dense" and not self._looks_at_all
        self._last_state: Tensor | None = None  # (R,)
        self._ended: Tensor | None = None  # (R,) bool, the episodes that the last step ended
        self._pending: Chosen | None = None  # before the step in which it is done
        self._env_is_seeded = False
        self._rate: float = 0.0  # of this step

    # -- learning --

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: Callback | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAlgorithm:
        """Make steps and learn from them.

        Args:
            total_timesteps: steps of each learner.
            callback: called after each step as ``callback(locals(), globals())``, with the agent as
                ``locals["self"]`` and what happened as ``locals["state"]``, ``["action"]``, ``["step"]``.
                Returns False to stop.
            reset_num_timesteps: begin new episodes, and count steps from 0; otherwise go on.
            progress_bar: show one, with tqdm.

        Returns:
            The agent itself.
        """
        check_callback(callback)
        if reset_num_timesteps or self._last_state is None:
            self._reset_env()
        if reset_num_timesteps:
            self.num_timesteps = 0
        end = self.num_timesteps + int(total_timesteps)  # numpy's would spread to what is saved
        horizon = self.schedule_timesteps or end
        bar = _progress_bar(total_timesteps) if progress_bar else None
        while self.num_timesteps < end:
            remaining = max(0.0, 1 - self.num_timesteps / horizon)
            self.exploration_rate = linear(
                self.exploration_initial_eps, self.exploration_final_eps, self.exploration_fraction, remaining
            )
            if not isinstance(self.learning_rate, VisitCount):
                self._rate = rate_at(self.learning_rate, remaining)
            state, action, step = self._make_step()
            self.num_timesteps += 1
            if self.records is not None:
                self.records.step(step, self.num_timesteps)
            if bar is not None:
                bar.update()
            if callback is not None and callback(locals(), globals()) is False:
                break
        if bar is not None:
            bar.close()
        return self

    def _reset_env(self) -> None:
        self._last_state = self.env.reset(seed=None if self._env_is_seeded else self.seed)
        self._ended = torch.zeros_like(self._last_state, dtype=torch.bool)
        self._env_is_seeded, self._pending = True, None
        if self.records is not None:
            self.records.new_episodes()

    def _make_step(self) -> tuple[Tensor, Tensor, Step]:
        """Act, and learn from what comes of it: the states and actions (R,), and the step."""
        state = self._last_state
        assert state is not None
        draw = self._draws.next()
        action, exploited, value, top = self._choose(state, draw)
        step = self.env.step(action)
        rows = self._table.rows(state)
        if self._memory is not None:
            heard = step.happened if self.remember_explored else exploited & step.happened
            self._memory.remember(rows, action, heard)
        if self.records is not None and self._looks_for_top:
            self.records.shortfall(value, top, step.happened)
        self._update(rows, action, step, draw)
        self._last_state, self._ended = step.state, step.terminated | step.truncated
        return state, action, step

    def _choose(self, state: Tensor, draw: Draw) -> Chosen:
        """What is to be executed in states (R,)."""
        return self._act(self._table.rows(state), draw.act)

    def _act(self, rows: Tensor, choice: Choice) -> Chosen:
        """Stochastic epsilon-greedy: uniform with probability epsilon, else the stochastic arg max.

        Of several tables the sum is maximised.
        """
        values, ids = self._values(rows, choice.ids)
        value, column = best(values.sum(0), choice.tie, ids)
        top = torch.full_like(value, torch.nan)
        if self._looks_for_top and isinstance(self._table, DenseTable):
            top = self._table.read_all(rows, self.n_tables).sum(0).amax(1)
        greedy = column if ids is None else ids.gather(1, column[:, None]).squeeze(1)
        explores = choice.coin < self.exploration_rate
        return Chosen(torch.where(explores, choice.action, greedy), ~explores, value, top)

    def _values(self, rows: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values of the candidates of rows (N,), in each table: (tables, N, C), and their ids (N, C).

        The ids are those ``drawn`` (N, k), R, and those remembered, M; or all, and then None.
        """
        if self._looks_at_all:
            assert isinstance(self._table, DenseTable)
            return self._table.read_all(rows, self.n_tables), None
        if self._memory is None:
            return self._table.read(rows, drawn, self.n_tables), drawn
        ids = torch.cat([drawn, self._memory.recall(rows)], 1)
        values = self._table.read(rows, ids.clamp(min=0), self.n_tables)
        return values.masked_fill(ids < 0, float("-inf")), ids

    def _update(self, rows: Tensor, action: Tensor, step: Step, draw: Draw) -> None:
        raise NotImplementedError

    def _move(
        self, rows: Tensor, action: Tensor, next_value: Tensor, step: Step, which: Tensor | None = None
    ) -> None:
        """Q(s, a) += alpha (r + gamma (1 - terminated) next_value - Q(s, a)), in table ``which`` (R,) or 0.

        An episode that was cut short is bootstrapped through: its last state still has a value.
        """
        entry = self._table.read(rows, action[:, None])[..., 0]  # (width, R)
        which = torch.zeros_like(self._runs) if which is None else which
        target = step.reward + self.gamma * torch.where(step.terminated, 0.0, next_value)
        value = entry[which, self._runs]
        rate: float | Tensor = self._rate
        if isinstance(self.learning_rate, VisitCount):
            visits = entry[self.n_tables + which, self._runs] + 1
            entry[self.n_tables + which, self._runs] = visits
            rate = visits**-self.learning_rate.power
        entry[which, self._runs] = value + rate * (target - value)
        self._table.write(rows, action, entry, step.happened)

    # -- using what was learned --

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, Any]:
        """Actions for observations.

        Args:
            observation: a state or an array of states of any shape, of one learner; of R learners (R, ...),
                where row i is for learner i.
            state: of recurrent policies elsewhere; passed through.
            episode_start: the same; ignored.
            deterministic: the greedy action, of equal ones the first. Over all n of a dense table; of a
                sparse one over the memory and ``eval_candidates`` uniform ids, which are a learner's own and
                always the same. False acts as in training, with the present exploration rate, and does not
                change training.

        Returns:
            Actions in the observations' shape (a numpy integer for a single one), and ``state``.

        Raises:
            ValueError: observations outside the space, or not R of them.
        """
        states = as_states(observation, self.n_states).to(self.device)
        if self.n_runs > 1 and (states.ndim == 0 or len(states) != self.n_runs):
            raise ValueError(
                f"There are {self.n_runs} learners: observations must be ({self.n_runs}, ...), one row a "
                f"learner; got shape {tuple(states.shape)}"
            )
        by_run = states.reshape(self.n_runs, -1)
        rows = self._table.rows(by_run.T).T.reshape(-1)
        if not deterministic:
            actions = self._act(rows, self._draws.for_prediction(by_run.shape[1])).action
        elif isinstance(self._table, DenseTable):
            actions = self._table.read_all(rows, self.n_tables).sum(0).argmax(1)
        else:
            drawn = self._draws.for_evaluation(self.eval_candidates)  # (R, C)
            drawn = drawn.repeat_interleave(by_run.shape[1], 0)
            values, ids = self._values(rows, drawn)
            assert ids is not None
            actions = ids.gather(1, values.sum(0).argmax(1, keepdim=True)).squeeze(1)
        return actions.reshape(states.shape).cpu().numpy()[()], state

    def q_values(self, table: int | None = None) -> np.ndarray:
        """All values, (R, S, n) float64: of one table of a double method, or (None) the mean of its tables.

        Raises:
            ValueError: the table is sparse.
        """
        if not isinstance(self._table, DenseTable):
            raise ValueError("A sparse table has no array of all its values: use q_value(states, actions)")
        values = self._table.values[: self.n_tables].reshape(-1, self.n_runs, self.n_states, self.n_actions)
        return (values.mean(0) if table is None else values[table]).cpu().numpy()

    def q_value(self, states: Any, actions: Any) -> np.ndarray:
        """Values of single entries, (R,): one state and one action a learner."""
        s = as_states(np.reshape(states, -1), self.n_states).to(self.device)
        a = as_states(np.reshape(actions, -1), self.n_actions).to(self.device)
        return self._table.read(self._table.rows(s), a[:, None], self.n_tables).mean(0)[:, 0].cpu().numpy()

    # -- environments and files --

    def get_env(self) -> Any:
        """The environment, as gymnasium's where it is one."""
        return getattr(self.env, "env", self.env)

    def set_env(self, env: Any) -> None:
        """Go on in another environment with the same spaces and number of runs.

        Raises:
            ValueError: it has others.
        """
        connected = connect(env, self.device)
        check_env(connected, self.device, (self.n_runs, self.n_states, self.n_actions))
        self.env = connected
        self._last_state, self._ended, self._pending, self._env_is_seeded = None, None, None, False

    def save(self, path: str | Path) -> None:
        """Save all that going on depends on, and the records, into a file without pickles.

        The environment is not in it.

        Args:
            path: the suffix ``.pt`` is added if there is none.
        """
        write(path, self)

    @classmethod
    def load(
        cls: type[SelfAlgorithm],
        path: str | Path,
        env: Any = None,
        device: torch.device | str = "auto",
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """Load what ``save`` wrote.

        Args:
            path: the file; the suffix ``.pt`` may be left out.
            env: as in the class; without one the agent can predict, and learn after ``set_env``.
            device: as in the class.
            force_reset: begin new episodes. False goes on in the state in which the agent was saved, for an
                environment that is in that state too, in the middle of episodes or between them.
            **kwargs: arguments other than those saved: learning_rate, gamma, exploration_fraction,
                exploration_initial_eps, exploration_final_eps, schedule_timesteps, record_interval.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it was cut short, is of another class or of other spaces, or needs an argument.
        """
        saved = read(path, cls.__name__, kwargs)
        sizes = tuple(saved.sizes)
        where = choose_device(env, device)
        if env is not None:
            env = connect(env, where)
            check_env(env, where, sizes)
        model = cls(Absent(where, *sizes) if env is None else env, device=where, **saved.arguments)
        restore(model, saved, goes_on=env is not None and not force_reset)
        return model


def _progress_bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress_bar=True needs tqdm: pip install tqdm") from error
    return tqdm(total=total)
