"""Acting step by step: the policy keeps each environment's past, and keys and values with it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from .actor import OnlineRADTActor, RADTActor
from .cache import StepCache
from .config import RADTConfig
from .history import History

CACHES = ("none", "exact", "sliding")
WINDOW_KEYS = ("timestep", "mask")


class RADTPolicy(TensorDictModuleBase):
    """A policy for ``env.rollout``, of an actor that was trained on windows.

    It takes one step of a batch of environments, remembers it, and gives the next action. Environments may
    reset at different times. The return-to-go is read anew at each step, so that it may be changed in the
    middle of an episode; see :class:`MultiTargetReturn`.

    Args:
        actor: a ``TensorDictModule`` around an actor, or a ``ProbabilisticActor``. Its in-keys are, in this
            order and by whatever names, observation, action and return-to-go, and then "timestep" and "mask",
            which a cache needs. Without a cache it may be of TorchRL's ``DTActor``.
        context: steps in sight, K, as in training.
        cache: ``"none"``: the whole window is computed at each step. ``"exact"``: keys and values are kept,
            to the same result up to rounding, until a window begins to slide; then as "none", because what
            an earlier step has become in deeper layers depends on steps that are no longer in the window.
            ``"sliding"``: they are kept always, for an actor trained with ``attention_window=K``, whose
            output is that of one pass over the whole episode.
        observation_key, action_key, return_to_go_key: entries of the environment. The actor writes the action
            under its name there.
        init_key: entry that is True at an episode's first step, as ``InitTracker`` writes it; None if
            episodes begin when ``reset`` is called, and then alone.

    TensorDict entries (B stands for the batch of environments):
        in: observation ``(*B, S)``; return_to_go ``(*B, 1)``; init ``(*B, 1)`` or ``(*B,)`` bool.
        out: action ``(*B, A)``, or ``(*B,)`` for indices.

    Raises:
        ValueError: a cache or keys that the actor was not made for; a batch of another size in the middle of
            episodes.

    Warns:
        UserWarning: once, when an episode is longer than the actor's ``max_ep_len``; looked at every so many
            steps.
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        context: int,
        *,
        cache: str = "none",
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
        return_to_go_key: NestedKey = "return_to_go",
        init_key: NestedKey | None = "is_init",
    ) -> None:
        super().__init__()
        if context < 1:
            raise ValueError(f"context must be at least 1, got {context}")
        if cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}; got {cache!r}")
        self.actor, self.context, self.cache = actor, context, cache
        self.observation_key, self.action_key = observation_key, action_key
        self.return_to_go_key, self.init_key = return_to_go_key, init_key
        self.in_keys = [observation_key, return_to_go_key]
        self.out_keys = [action_key]
        if not hasattr(getattr(self._net, "transformer", None), "action_dim"):
            raise ValueError(f"the first module of the actor must be a RADTActor or DTActor, not {self._net}")
        if not isinstance(actor, TensorDictModuleBase):
            raise ValueError(
                "wrap the actor in a TensorDictModule, and that in a ProbabilisticActor if it has one"
            )
        config = getattr(self._net.transformer, "config", None)
        if isinstance(config, RADTConfig) and 3 * context > config.n_positions:
            raise ValueError(
                f"context={context} is {3 * context} tokens, more than the actor's n_positions="
                f"{config.n_positions}"
            )
        self._names = self._check_keys(self._first.in_keys)
        if cache != "none":
            self._check_cache()
        self._history: History | None = None
        self._cached: StepCache | None = None
        self._calls = 0  # since all environments began an episode together, but for a sliding cache
        self._warned = False

    @property
    def _first(self) -> TensorDictModuleBase:
        """The network's module; behind it there may be a distribution's."""
        return self.actor[0] if isinstance(self.actor, TensorDictSequential) else self.actor

    @property
    def _net(self) -> Any:
        return self._first.module if isinstance(self._first, TensorDictModule) else self._first

    def _check_keys(self, in_keys: list[NestedKey]) -> list[NestedKey]:
        """What the actor calls observation, action and return-to-go."""
        if len(in_keys) < 3 or not set(in_keys[3:]) <= set(WINDOW_KEYS):
            raise ValueError(
                "the actor's in-keys must be observation, action and return-to-go, by any names, and then at "
                f"most 'timestep' and 'mask'; got {in_keys}"
            )
        if self.action_key not in self.actor.out_keys:
            raise ValueError(
                f"the actor writes {self.actor.out_keys}, not {self.action_key!r}: give one of its out-keys "
                "as action_key, and have the environment read its actions there"
            )
        return in_keys[:3]

    def _check_cache(self) -> None:
        if not isinstance(self._net, (RADTActor, OnlineRADTActor)):
            raise ValueError(f"cache={self.cache!r} is for a RADTActor; for another use cache='none'")
        config, missing = self._net.transformer.config, set(WINDOW_KEYS) - set(self.actor.in_keys)
        if config.architecture != "radt":
            raise ValueError(f"architecture={config.architecture!r} has no cache; use cache='none'")
        if missing:
            raise ValueError(
                f"cache={self.cache!r} needs times that stay when the window slides: give the actor the "
                f"in-keys {', '.join(sorted(missing))} too, in training as well, or use cache='none'"
            )
        if self.cache == "sliding" and config.attention_window != self.context:
            raise ValueError(
                f"cache='sliding' is exact for an actor trained with attention_window={self.context}, its "
                f"context; this one has {config.attention_window}. Train one with it, or use cache='exact'"
            )

    def reset(self) -> None:
        """Forget all episodes; the next step is the first of each environment."""
        self._history = self._cached = None

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Choose actions for the present step."""
        lead = tensordict.batch_size
        observation = self._entry(tensordict, self.observation_key).reshape(lead.numel(), -1)  # (B, S)
        return_to_go = self._entry(tensordict, self.return_to_go_key).reshape(lead.numel(), 1)
        if observation.shape[-1] != self._net.transformer.state_dim:
            raise ValueError(
                f"the actor was made for observations of {self._net.transformer.state_dim} features, "
                f"these have {observation.shape[-1]}"
            )
        first = None if self.init_key is None else tensordict.get(self.init_key, None)
        if first is None and self.init_key is not None:
            raise ValueError(
                f"the tensordict has no {self.init_key!r}, which tells where episodes begin: append "
                "InitTracker to the environment, or give init_key=None and call reset() yourself"
            )
        history = self._begin_step(first, observation, return_to_go)
        self._warn_if_long(history)
        use_cache = self.cache == "sliding" or (self.cache == "exact" and self._calls < self.context)
        action = self._act_from_cache(history) if use_cache else self._act_from_window(history)
        index = history.empty.ndim == 1 and action.ndim == 2
        history.act(action.argmax(-1) if index else action)  # (B, A), or (B,) if discrete
        self._calls += 1
        tensordict.set(self.action_key, action.reshape((*lead, *action.shape[1:])))
        return tensordict

    def _entry(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """What the environment says, in the network's dtype: MuJoCo observes float64."""
        value = tensordict.get(key, None)
        if value is None:
            hint = "; MultiTargetReturn, as a transform, writes it" if key == self.return_to_go_key else ""
            raise ValueError(f"the tensordict has no {key!r}: give RADTPolicy the key that it has{hint}")
        return value.to(next(self.actor.parameters()).dtype)

    def _begin_step(self, first: Tensor | None, observation: Tensor, return_to_go: Tensor) -> History:
        count = len(observation)
        if self._history is not None and self._history.count != count:
            if first is None or not first.all():
                raise ValueError(
                    f"{count} environments, but {self._history.count} at the step before; call reset() first"
                )
            self.reset()
        if self._history is None:
            context = 1 if self.cache == "sliding" else self.context
            self._history, self._calls = History(observation, self._empty_action(observation), context), 0
        elif first is not None:
            rows = first.reshape(count)
            self._history.reset(rows)
            if self._cached is not None:
                self._cached.reset(rows)
            if self.cache != "sliding" and rows.all():
                self._calls = 0
        self._history.observe(observation, return_to_go)
        return self._history

    def _empty_action(self, observation: Tensor) -> Tensor:
        """What stands for an action not yet taken: zeros, or the index -1."""
        net = self._net.transformer
        if getattr(net, "discrete", False):
            return torch.full((len(observation),), -1, device=observation.device)
        return observation.new_zeros(len(observation), net.action_dim)

    def _act_from_window(self, history: History) -> Tensor:
        # while all episodes are short, windows have no padding, which an actor without a mask would look at
        window = history.window(*self._names)[:, -self._calls - 1 :]
        return self.actor(window).get(self.action_key)[:, -1]

    def _act_from_cache(self, history: History) -> Tensor:
        if self._cached is None:
            config = self._net.transformer.config
            window = config.attention_window or self.context
            self._cached = StepCache(config, history.count, window, history.observations)
        observation, return_to_go = history.observations[:, -1], history.returns[:, -1]
        outputs = self._net.step(observation, history.before, return_to_go, self._cached)
        modules = list(self.actor) if isinstance(self.actor, TensorDictSequential) else [self.actor]
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        out = TensorDict(dict(zip(modules[0].out_keys, outputs, strict=True)), [history.count])
        for module in modules[1:]:
            out = module(out)
        return out.get(self.action_key)

    def _warn_if_long(self, history: History) -> None:
        config = getattr(self._net.transformer, "config", None)
        longest = getattr(config, "max_ep_len", None)
        # a look at the steps waits for the device; it is worth one now and then
        if longest is None or self._warned or self._calls < longest or self._calls % longest:
            return
        if history.step.max() >= longest:
            self._warned = True
            warnings.warn(
                f"An episode has {int(history.step.max()) + 1} steps, and the actor was made for "
                f"max_ep_len={longest}: it acts at times that it has not been trained on.",
                stacklevel=3,
            )
