"""Windows of a dataset of whole episodes: what a return-conditioned transformer is trained on."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

ACTION_PADDING = -1  # of discrete actions; that of continuous ones is 0


def return_to_go(reward: Tensor, episode: Tensor) -> Tensor:
    """What each step's episode still brings, the step's own reward included, undiscounted:
    ``rtg_t = r_t + r_{t+1} + ... + r_{T-1}``.

    Args:
        reward: ``(N, 1)``, the steps of whole episodes one after another.
        episode: ``(N,)``, the number of each step's episode.

    Returns:
        ``(N, 1)`` float32, from sums in float64.
    """
    lengths = torch.unique_consecutive(episode, return_counts=True)[1]
    return _sums_to_the_end(reward, lengths).float()


def _sums_to_the_end(reward: Tensor, lengths: Tensor) -> Tensor:
    """Of each episode by itself, so that rounding in one does not reach the others: (N, 1) float64."""
    episodes = reward.double().split(lengths.tolist())
    return torch.cat([rewards.flip(0).cumsum(0).flip(0) for rewards in episodes])


class TrajectoryWindows:
    """Windows of ``context`` consecutive steps, drawn from a dataset that lies on one device as a whole.

    Each transition of the dataset is equally likely to be the first step of a window. So an episode is drawn
    in proportion to its length, and the start within it uniformly, as in the paper's code. A window that
    reaches the end of its episode is shorter, and is padded on the left. The draw and the gather are a few
    operations on the device, which the host never waits for.

    Args:
        data: a ``TensorDict`` of batch size ``[N]``, as TorchRL's offline datasets have it (``buffer[:]``):
            the transitions of whole episodes one after another, in raw units. A last step that is neither
            terminated nor truncated is taken for the end of its episode; an episode may have one step.
        context: steps in a window, K.
        max_ep_len: the longest episode to accept, such as a model's own limit; any if None.
        normalise: whether windows have observations less ``mean``, by ``std``. Padding stays 0.
        device: where the dataset is to lie; ``data``'s own device if None.
        seed: of the draws.
        observation_key, action_key, reward_key, done_key, episode_key: where in ``data`` they are:
            observations ``(N, S)`` and actions ``(N, A)`` of floats, or discrete actions ``(N,)`` of
            integers; rewards ``(N, 1)``; the numbers of the episodes ``(N,)``, which never decrease.
            ``done`` ``(N, 1)`` may be missing.

    Attributes:
        returns: of the episodes, undiscounted, ``(E,)`` float64 on the CPU.
        lengths: of the episodes, ``(E,)`` int64 on the CPU.
        return_to_go: of the transitions, ``(N, 1)`` float32; see `return_to_go`.
        mean, std: of the observations, ``(S,)`` float32; the second one is 1e-6 larger.
        discrete: whether actions are.

    Raises:
        ValueError: what is missing or wrong in ``data``, an episode longer than ``max_ep_len``.
    """

    def __init__(
        self,
        data: TensorDictBase,
        context: int,
        *,
        max_ep_len: int | None = None,
        normalise: bool = False,
        device: Any = None,
        seed: int = 0,
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
        reward_key: NestedKey = ("next", "reward"),
        done_key: NestedKey = ("next", "done"),
        episode_key: NestedKey = "episode",
    ) -> None:
        if not isinstance(data, TensorDictBase) or len(data.batch_size) != 1 or not len(data):
            raise ValueError(
                "data must be a TensorDict of batch size [N], N transitions of at least one episode "
                f"(of a replay buffer, buffer[:]); got {getattr(data, 'batch_size', type(data).__name__)}."
            )
        if context < 1:
            raise ValueError(f"context is the number of steps in a window, at least 1; got {context}.")
        self.context = context
        self.device = torch.device(device if device is not None else data.device or "cpu")

        observation = _observations(data, observation_key)  # (N, S)
        action = _actions(data, action_key)  # (N, A) or (N,)
        reward = _rewards(data, reward_key)  # (N, 1)
        self.lengths = _episode_lengths(data, episode_key, done_key, max_ep_len)  # (E,)
        stop = self.lengths.cumsum(0)  # (E,) one past the last step
        start = stop - self.lengths
        to_go = _sums_to_the_end(reward, self.lengths)  # (N, 1)
        self.returns = to_go[start, 0]
        self.discrete = action.ndim == 1

        mean = observation.double().mean(0)
        std = observation.double().std(0, correction=0) + 1e-6
        self.mean, self.std = mean.float().to(self.device), std.float().to(self.device)
        if normalise:
            observation = (observation - mean.float()) / std.float()

        # One row more than transitions: the last is padding, and a window is a single gather.
        N = len(data)
        steps = TensorDict(
            {
                "observation": observation,
                "action": action,
                "return_to_go": to_go.float(),
                "timestep": torch.arange(N) - start.repeat_interleave(self.lengths),
                "mask": torch.ones(N, dtype=torch.bool),
            },
            batch_size=[N],
        )
        padding = steps[:1].apply(torch.zeros_like)
        if self.discrete:
            padding["action"] = padding["action"] + ACTION_PADDING
        self._rows = TensorDict.cat([steps, padding]).to(self.device)
        self._stop = stop.repeat_interleave(self.lengths).to(self.device)  # (N,) of each step's episode
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def __repr__(self) -> str:
        low, high = float(self.returns.min()), float(self.returns.max())
        return (
            f"TrajectoryWindows({len(self.lengths)} episodes, {len(self)} steps, context={self.context}, "
            f"returns {low:.4g} to {high:.4g}, device={self.device})"
        )

    def __len__(self) -> int:
        """The number of transitions, N."""
        return len(self._stop)

    @property
    def return_to_go(self) -> Tensor:
        return self._rows["return_to_go"][:-1]

    def sample(self, batch_size: int) -> TensorDictBase:
        """Windows that begin at transitions drawn uniformly, with replacement; see ``at``."""
        first = torch.randint(len(self), (batch_size,), device=self.device, generator=self._generator)
        return self.at(first)

    def at(self, first: Tensor) -> TensorDictBase:
        """The windows that begin at given transitions.

        Args:
            first: ``(B,)`` int64, in [0, N).

        Returns:
            ``[B, K]``: ``observation`` (B, K, S); ``action`` (B, K, A), or (B, K) if discrete;
            ``return_to_go`` (B, K, 1); ``timestep`` (B, K) int64, counted from the episode's beginning;
            ``mask`` (B, K) bool, True where a step is real. Padding, on the left, is 0, and -1 in
            discrete actions.
        """
        length = (self._stop[first] - first).clamp(max=self.context)  # (B,)
        behind_last = torch.arange(-self.context, 0, device=self.device)  # (K,)
        step = (first + length).unsqueeze(1) + behind_last  # (B, K)
        return self._rows[torch.where(step < first.unsqueeze(1), len(self), step)]

    def target_range(self, low: float = 5, high: float = 95) -> tuple[float, float]:
        """Two percentiles of the episodes' returns: targets between them are within the data."""
        at = torch.tensor([low, high], dtype=torch.float64) / 100
        p_low, p_high = self.returns.quantile(at).tolist()
        return p_low, p_high

    def get_state(self) -> Tensor:
        """Where the draws are, for ``set_state`` to go on from."""
        return self._generator.get_state()

    def set_state(self, state: Tensor) -> None:
        self._generator.set_state(state.cpu())


def _get(data: TensorDictBase, key: NestedKey, hint: str) -> Tensor:
    value = data.get(key, None)
    if value is None:
        raise ValueError(f"data has no {key!r}: {hint}")
    return value.to("cpu")


def _finite(value: Tensor, key: NestedKey) -> Tensor:
    """As float32, without NaN and infinities."""
    value = value.float()
    bad = ~value.isfinite().flatten(1).all(1)  # (N,)
    if bool(bad.any()):
        raise ValueError(
            f"{key!r} has NaN or infinite values, first at transition {int(bad.int().argmax())}, in "
            f"{int(bad.sum())} in all. Leave the episodes out that they are in."
        )
    return value


def _observations(data: TensorDictBase, key: NestedKey) -> Tensor:
    value = _get(data, key, "name the entry that has them, observation_key=...")
    if value.ndim != 2 or not value.is_floating_point():
        raise ValueError(
            f"{key!r} must be vectors of floats, (N, S); got {value.dtype} {tuple(value.shape)}. "
            "Flatten and convert them: x.flatten(1).float()."
        )
    return _finite(value, key)


def _actions(data: TensorDictBase, key: NestedKey) -> Tensor:
    value = _get(data, key, "name the entry that has them, action_key=...")
    if value.is_floating_point():
        if value.ndim != 2:
            raise ValueError(
                f"{key!r} has floats, so actions are continuous and must be (N, A); got "
                f"{tuple(value.shape)}. Use x.unsqueeze(-1) if they are scalars, x.long() if indices."
            )
        return _finite(value, key)
    if value.ndim != 1 or value.dtype == torch.bool:
        raise ValueError(
            f"{key!r} has integers, so actions are discrete and must be indices (N,); got {value.dtype} "
            f"{tuple(value.shape)}. Use x.argmax(-1) if they are one-hot, x.squeeze(-1) if they are (N, 1), "
            "x.float() if they are continuous after all."
        )
    if int(value.min()) < 0:
        raise ValueError(f"{key!r} has negative indices; -1 stands for padding. Count actions from 0.")
    return value.long()


def _rewards(data: TensorDictBase, key: NestedKey) -> Tensor:
    value = _get(data, key, "name the entry that has them, reward_key=...")
    if value.shape != (len(data), 1) or not value.is_floating_point():
        raise ValueError(
            f"{key!r} must be floats (N, 1), as TorchRL has them; got {value.dtype} {tuple(value.shape)}. "
            "Use x.float().reshape(-1, 1)."
        )
    return _finite(value, key)


def _episode_lengths(
    data: TensorDictBase, key: NestedKey, done_key: NestedKey, max_ep_len: int | None
) -> Tensor:
    """(E,) int64."""
    episode = _get(data, key, "number the episodes, such as by done.cumsum(0) - done.long() of (N,) ends.")
    if episode.shape != (len(data),) or episode.is_floating_point() or episode.dtype == torch.bool:
        raise ValueError(
            f"{key!r} must be integers (N,), the number of each transition's episode; got {episode.dtype} "
            f"{tuple(episode.shape)}. Use x.long().reshape(-1)."
        )
    if bool((episode.diff() < 0).any()):
        raise ValueError(
            f"{key!r} decreases: episodes must come whole, one after another, with growing numbers. Number "
            "them anew where datasets were put together; data[data['episode'].argsort(stable=True)] sorts."
        )
    _, lengths = torch.unique_consecutive(episode, return_counts=True)
    longest = int(lengths.max())
    if max_ep_len is not None and longest > max_ep_len:
        raise ValueError(
            f"The longest episode has {longest} steps, more than max_ep_len={max_ep_len}: set "
            f"max_ep_len={longest}, or leave such episodes out."
        )
    done = data.get(done_key, None)
    if done is not None:
        inside = done.to("cpu", copy=True).reshape(-1).bool()
        inside[lengths.cumsum(0) - 1] = False
        if bool(inside.any()):
            raise ValueError(
                f"Transition {int(inside.int().argmax())} is done, and the next has the same {key!r}. Number "
                "episodes apart, such as by done.cumsum(0) - done.long() of (N,) ends."
            )
    return lengths
