"""What a world is: arithmetic on a state, written once for Python scalars, numpy arrays and torch tensors."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

State = dict[str, Any]
"""Named components of shape ``(B,)``, or Python numbers for one environment; ``key`` and ``t`` always."""


@runtime_checkable
class World(Protocol):
    """A frozen dataclass whose fields are the keyword arguments of ``gym.make``.

    Nothing is stored between calls: whatever an episode needs is in its state, and its randomness is a hash
    of ``state["key"]`` and ``state["t"]``. So a state can be saved, copied, batched and replayed on any
    device.
    """

    reward_range: ClassVar[tuple[float, float]]
    """Bounds of a reward."""

    @property
    def n(self) -> int:
        """Number of actions; the ids are 0 .. n-1 and all are legal."""

    @property
    def horizon(self) -> int:
        """Steps after which an episode is truncated."""

    @property
    def low(self) -> np.ndarray:
        """Lower bounds of the observation, float32 of shape ``(d,)``."""

    @property
    def high(self) -> np.ndarray:
        """Upper bounds of the observation, float32 of shape ``(d,)``."""

    def reset(self, key: Any) -> State:
        """The first state of the episodes named by ``key``, integers in [0, 2^62)."""

    def step(self, state: State, action: Any) -> tuple[State, Any, Any]:
        """Next state, reward (float64), whether the episode terminated (bool); ``state`` stays as it is."""

    def observe(self, state: State) -> Any:
        """Observation of shape ``(B, d)``, float32."""

    def optimal_action(self, state: State) -> Any:
        """An action of the best known policy; of an optimal one where ``optimal_return`` is not None."""

    def optimal_value(self, state: State) -> Any:
        """Expected sum of the rewards to come under the best policy, or an upper bound (the world says)."""

    def optimal_return(self) -> float | None:
        """Expected undiscounted return of an episode of the best policy; None where not known exactly."""

    def random_return(self) -> float | None:
        """Expected undiscounted return of an episode of uniform ids; None where not known exactly."""

    def action_features(self, ids: Any) -> Any:
        """Features of actions for networks that take the action as an input, ``(*ids.shape, d)`` float32."""

    def good_fraction(self, eps: float) -> float:
        """Fraction of the ids that come within ``eps`` of the best one (the world says in what)."""

    def describe(self, state: State, last: tuple[State, int, float] | None) -> list[str]:
        """Lines of text: where one environment is, and what the last ``(state, action, reward)`` did."""

    def draw(self, canvas: Any, state: State, last: tuple[State, int, float] | None) -> None:
        """Draw one environment on a `Canvas`, from (0, 0) at the lower left to (1, 1)."""


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with ``message`` unless ``condition``."""
    if not condition:
        raise ValueError(message)


def require_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raise unless ``value`` is an integer in [low, high]."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    require(is_integer and low <= value <= high, f"{name} must be an int in [{low}, {high}], got {value!r}")
