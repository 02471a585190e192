"""What a world is: arithmetic on a state, written once for Python scalars, numpy arrays and torch tensors."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ClassVar, Literal

import numpy as np

from .arrays import namespace
from .digits import join, split

State = dict[str, Any]
"""Named components whose first axis is the batch, ``(B, ...)``; always with ``key`` and ``t``, ``(B,)``
int64. One environment alone is Python numbers, or a batch of one where the world is ``batched``."""

Structure = Literal["unstructured", "metric", "factored", "combinatorial", "permutation", "information"]

RANDOM_EPISODES = 10_000  # behind a random value without a closed form


class World(ABC):
    """A frozen dataclass whose fields are the keyword arguments of ``gym.make``.

    Nothing is stored between calls: whatever an episode needs is in its state, and its randomness is a hash
    of ``state["key"]`` and ``state["t"]``. So a state can be saved, copied, batched and replayed on any
    device. A step neither changes the state it is given nor makes its work depend on the values (see
    `arrays.may_look`): then torch.compile and CUDA graphs can take it.

    Keys and ids are int64, or Python integers, and are not checked here: the doors do that. When ``horizon``
    steps are taken, nothing is left: every value is 0, and any action is as good.

    A subclass defines what is abstract here, and as much of the rest as is known of its optimum.
    """

    structure: ClassVar[Structure]
    """What an agent can know of an action that it has never tried.

    ``unstructured``: nothing. ``metric``: near ids, or near points, do nearly the same. ``factored``: the
    digits of an id act on parts of their own. ``combinatorial``: they are parts of one whole.
    ``permutation``: an id is an order. ``information``: an action is a question, and what it is worth
    depends on what is known.
    """

    batched: ClassVar[bool] = False
    """Whether a state has components of more than one axis. If not, Python numbers are a state too, and one
    environment alone is several times as fast. If so, ``reset(key)`` makes a batch of one of a Python
    integer, and a Python integer for an action is that action in the whole batch."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.batched:
            cls.reset = _takes_one_key(cls.reset)  # type: ignore[method-assign]
            cls.step = _takes_one_action(cls.step)  # type: ignore[method-assign]
            cls.q_star = _takes_one_action(cls.q_star)  # type: ignore[method-assign]
            cls.regret = _takes_one_action(cls.regret)  # type: ignore[method-assign]
            cls.action_features = _takes_one_id(cls.action_features)  # type: ignore[method-assign]

    # What there must be

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of actions; the ids are 0 .. n-1 and all are legal."""

    @property
    @abstractmethod
    def horizon(self) -> int:
        """Steps after which an episode is truncated."""

    @property
    @abstractmethod
    def reward_range(self) -> tuple[float, float]:
        """Bounds of a reward."""

    @property
    @abstractmethod
    def low(self) -> np.ndarray:
        """Lower bounds of the observation, float32 of shape ``(d,)``."""

    @property
    @abstractmethod
    def high(self) -> np.ndarray:
        """Upper bounds of the observation, float32 of shape ``(d,)``."""

    @abstractmethod
    def reset(self, key: Any) -> State:
        """The first state of the episodes named by ``key``, integers in [0, 2^62), ``(B,)``."""

    @abstractmethod
    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        """Next state, reward (float64), whether the episode terminated (bool); ``state`` stays as it is."""

    @abstractmethod
    def observe(self, state: State) -> Any:
        """Observation of shape ``(B, d)``, float32, within ``low`` and ``high``."""

    @abstractmethod
    def action_features(self, ids: Any) -> Any:
        """Features of actions for networks that take the action as an input, ``(*ids.shape, d)`` float32."""

    @abstractmethod
    def optimal_action(self, state: State) -> Any:
        """An optimal action where `exact`, else one of the best policy that is known, ``(B,)`` int64."""

    @abstractmethod
    def optimal_value(self, state: State) -> Any:
        """Expected sum of the rewards to come under an optimal policy where `exact`, else an upper bound of
        it, ``(B,)`` float64."""

    @abstractmethod
    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids that come within ``eps`` of the best one (the world says in what)."""

    # What may be known besides

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values of each digit of an id, the least significant first: the factored form of the actions."""
        return (self.n,)

    def to_digits(self, ids: Any) -> Any:
        """The digits of ``ids``, the least significant first: integers ``(*ids.shape, len(sizes))``."""
        return namespace(ids).stack(split(ids, self.sizes), axis=-1)

    def to_ids(self, digits: Any) -> Any:
        """The ids that have these digits, an array ``(*shape, len(sizes))``: the inverse of `to_digits`."""
        return join([digits[..., i] for i in range(len(self.sizes))], self.sizes)

    @property
    def exact(self) -> bool:
        """Whether ``optimal_value``, ``optimal_action``, ``q_star`` and ``regret`` are exact."""
        return False

    def q_star(self, state: State, action: Any) -> Any:
        """Expected sum of the rewards to come after ``action`` if all later ones are optimal, ``(B,)``
        float64.

        Raises:
            NotImplementedError: the optimum is not known exactly.
        """
        raise NotImplementedError(
            f"The optimum of {self} is not known exactly, so there is no q_star: compare returns with "
            "optimal_value, an upper bound, and with those of optimal_action, a good policy."
        )

    def regret(self, state: State, action: Any) -> Any:
        """How much of the optimal value ``action`` gives away, ``(B,)`` float64, where the world is
        `exact`."""
        return self.optimal_value(state) - self.q_star(state, action)

    def if_left(self, state: State, value: Any) -> Any:
        """``value`` where steps are left in ``state``, else 0."""
        return namespace(state["t"]).where(state["t"] < self.horizon, value, value * 0.0)

    def optimal_return(self) -> float | None:
        """Expected undiscounted return of an episode of the best policy; None where not known exactly."""
        return None

    def random_return(self) -> float | None:
        """Expected undiscounted return of an episode of uniform ids; None without a closed form."""
        return None

    def random_value(self) -> float:
        """Expected undiscounted return of an episode of uniform ids: `random_return`, or where that is None
        the mean of 10,000 episodes, always the same ones."""
        exact = self.random_return()
        return _mean_random_return(self) if exact is None else exact

    # Pictures

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        """Lines of text: where one environment is, and what the last ``(state, action, reward)`` did."""
        observation = np.asarray(self.observe(state)).reshape(-1)
        shown = " ".join(f"{x:.2f}" for x in observation[:12]) + (" ..." if len(observation) > 12 else "")
        t = np.asarray(state["t"]).item()
        lines = [f"{type(self).__name__}, {self.n} actions, step {t} of {self.horizon}", shown]
        if last is not None:
            digits = " ".join(map(str, split(last[1], self.sizes)))
            lines.insert(1, f"action {last[1]}: reward {last[2]:.3f}")
            lines.append(f"digits {digits}")
        return lines

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """Draw one environment on a `Canvas`, from (0, 0) at the lower left to (1, 1).

        Without a natural picture: the observation as bars, the digits of the action as bars, and the reward
        as a mark between its bounds.
        """
        observation = np.asarray(self.observe(state), dtype=np.float64).reshape(-1)
        share = (observation - self.low) / np.maximum(self.high - self.low, 1e-9)
        canvas.bars(share, 0.0, 0.5, 1.0, 0.95, "blue")
        if last is None:
            return
        digits = [
            digit / max(1, size - 1)
            for digit, size in zip(split(last[1], self.sizes), self.sizes, strict=True)
        ]
        canvas.bars(digits, 0.0, 0.15, 1.0, 0.42, "grey")
        low, high = self.reward_range
        x = (last[2] - low) / (high - low)
        canvas.box(0.0, 0.03, 1.0, 0.06, "light")
        canvas.disc(min(max(x, 0.0), 1.0), 0.045, 0.02, "red")


def _takes_one_key(reset: Callable[..., State]) -> Callable[..., State]:
    @wraps(reset)
    def of_batch(self: World, key: Any) -> State:
        return reset(self, np.array([key]) if isinstance(key, int) else key)

    return of_batch


def _takes_one_action(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def of_batch(self: World, state: State, action: Any) -> Any:
        return method(self, state, state["t"] * 0 + action if isinstance(action, int) else action)

    return of_batch


def _takes_one_id(features: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(features)
    def of_batch(self: World, ids: Any) -> Any:
        return features(self, np.array([ids]))[0] if isinstance(ids, int) else features(self, ids)

    return of_batch


@lru_cache(maxsize=64)
def _mean_random_return(world: World) -> float:
    from .rollout import rollout, uniform_policy

    return float(rollout(world, uniform_policy(world), RANDOM_EPISODES)[0].mean())


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with ``message`` unless ``condition``."""
    if not condition:
        raise ValueError(message)


def require_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raise unless ``value`` is an integer in [low, high]."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return
    top = next((f"2^{i}" for i in range(20, 63) if high == 2**i), f"{high:,}")
    hint = (
        f": write {int(value):,}".replace(",", "_") if isinstance(value, float) and value.is_integer() else ""
    )
    raise ValueError(f"{name} must be an int in [{low}, {top}], got {value!r}{hint}")


def require_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise unless ``value`` is a finite number in [low, high]."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    require(is_number and low <= value <= high, f"{name} must be a number in [{low}, {high}], got {value!r}")
