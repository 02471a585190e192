"""The greedy actor, over candidates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import unravel_key, unravel_key_list
from torch import Tensor
from torchrl.data import Composite, TensorSpec
from torchrl.envs.utils import ExplorationType, exploration_type

from ...stochmax.candidates import ExactMaximum, SampledMaximum, resolve, same_draws
from ...stochmax.maximise import Maximum
from ...stochmax.memories import CachedArgmax
from ...stochmax.sources import Query, Source
from .keys import flat_observation, read
from .network import StochQNetwork
from .replayed import ReplayedActions
from .specs import Actions, action_leaf, count_actions, what_is_legal

GREEDY = (ExplorationType.DETERMINISTIC, ExplorationType.MODE, ExplorationType.MEAN)


class StochQValueActor(TensorDictModuleBase):
    """The best of a few candidate actions: :class:`torchrl.modules.QValueActor` in O(log n).

    It writes the action and its value, and never the values of all n actions.

    With exploration on, candidates are those of training. With ``set_exploration_type`` deterministic it
    looks further, at ``eval_candidates``, the same ones at each call.

    Args:
        network: the action-value network.

    Keyword Args:
        in_keys: what the trunk reads; ``["observation"]`` by default.
        spec: the action's spec, ``Categorical`` or ``MultiCategorical``, such as
            ``env.action_spec_unbatched``; or a Composite that has it. None is ``Categorical`` over the
            network's actions.
        candidates: what is maximised over, when acting and in :class:`StochDQNLoss`: ``"log"``, ceil(log2 n)
            uniform actions a state and as many of the replay; ``"all"``, all n exactly; ``"auto"``, ``"all"``
            up to 512 actions, else ``"log"``; ``"paper"``, ``"authors_code"``; or a list of sources from
            ``extensions.stochmax``. What ``Elite`` and ``RecentExploited`` keep is in no state dict, and
            ``RecentExploited`` hears of this actor's actions, those too that exploration then replaces.
        eval_candidates: how many uniform and how many remembered actions a deterministic actor looks at, or
            ``"all"``. It is exact if there are no more actions than that.
        legal_actions: ids legal everywhere, or a callable from the observation (a dict of them by name if
            there are several ``in_keys``) to ids (B, L), padded with -1.
        action_mask_key: where each step's mask of n is, for up to 10,000 actions.
        action_key, chosen_action_value_key: where it writes; ``"action"`` and ``"chosen_action_value"``.

    Raises:
        ValueError: a one-hot spec, one of several actions, or with another number of them than the network; a
            mask of n above 10,000 actions, or both a mask and legal_actions; candidates that are unknown or
            cannot be had here.
        KeyError: when called with a tensordict that lacks an ``in_key``.

    Examples:
        >>> network = StochQNetwork(torchrl.modules.MLP(4, 64, num_cells=[64]), 1_000_000)
        >>> actor = StochQValueActor(network)
        >>> actor(TensorDict({"observation": torch.randn(3, 4)}, [3]))["action"].shape
        torch.Size([3])
    """

    def __init__(
        self,
        network: StochQNetwork,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        spec: TensorSpec | None = None,
        candidates: str | Sequence[Source] = "log",
        eval_candidates: int | str = 1024,
        legal_actions: Any = None,
        action_mask_key: NestedKey | None = None,
        action_key: NestedKey = "action",
        chosen_action_value_key: NestedKey = "chosen_action_value",
    ) -> None:
        if not isinstance(network, StochQNetwork):
            raise TypeError(
                f"StochQValueActor takes a StochQNetwork, which is asked for a few actions at a time, got "
                f"{type(network).__name__}. Make one of your module, without its last layer of n outputs: "
                "StochQNetwork(module, n)."
            )
        self.observation_keys = unravel_key_list(list(in_keys or ["observation"]))
        self.action_key, self.value_key = unravel_key(action_key), unravel_key(chosen_action_value_key)
        self.action_mask_key = None if action_mask_key is None else unravel_key(action_mask_key)
        mask_keys = [] if self.action_mask_key is None else [self.action_mask_key]
        self.in_keys = [*self.observation_keys, *mask_keys]
        self.out_keys = [self.action_key, self.value_key]
        super().__init__()
        self.network = network
        codec = network.codec
        leaf = None if spec is None else action_leaf(spec, self.action_key)
        if leaf is not None:
            n = count_actions(leaf, masked=self.action_mask_key is not None)
            if n != codec.n:
                raise ValueError(
                    f"the spec has {n:,} actions, the network {codec.n:,}: make it StochQNetwork(trunk, {n})"
                )
        batched = spec if isinstance(spec, Composite) else Composite({self.action_key: spec})
        self._spec = Composite(
            {self.action_key: batched[self.action_key], self.value_key: None}, shape=batched.shape
        )
        self.actions = Actions(leaf, codec)
        self.memory = ReplayedActions(codec.n)

        legal = what_is_legal(legal_actions, self.action_mask_key is not None, codec)
        sources = resolve(candidates, codec.n)
        if sources is not None and any(isinstance(s, CachedArgmax) for s in sources):
            raise ValueError(
                "CachedArgmax keeps its ids in Stable-Baselines3's replay buffer and is not for TorchRL; "
                "use ReplayActions()."
            )
        exact = eval_candidates == "all"
        if not exact and (isinstance(eval_candidates, (bool, str)) or int(eval_candidates) < 1):
            raise ValueError(f"eval_candidates must be 'all' or an integer >= 1, got {eval_candidates!r}")
        self.maximum: SampledMaximum | ExactMaximum = ExactMaximum(codec, legal)
        self.eval_maximum: SampledMaximum | ExactMaximum = ExactMaximum(codec, legal)
        if sources is not None:
            self.maximum = SampledMaximum(copy.deepcopy(sources), codec, legal)
        self.learned = self.maximum.build_modules(network.inputs)
        if isinstance(self.maximum, SampledMaximum) and not exact and codec.n > int(eval_candidates):
            self.eval_maximum = self.maximum.widened(int(eval_candidates))

    @property
    def spec(self) -> Composite:
        """The specs of what it writes."""
        return self._spec

    @property
    def action_space(self) -> str:
        """As TorchRL's losses name it."""
        return "categorical"

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the best candidate as the spec has it, (\\*B,) or (\\*B, 1) int64 or (\\*B, d) digits, and
        its value (\\*B, 1).
        """
        batch, states, query = self.look_at(tensordict)
        if exploration_type() in GREEDY:
            query.replay = self.memory.most
            with same_draws(states.device):
                best = self.eval_maximum(self.network.head, states, query)
        else:
            query.replay = self.memory.draw
            self._new_step()
            best = self.maximum(self.network.head, states, query)
            for source in self.maximum.sources:
                source.executed(query.obs, best.action)
        tensordict.set(self.action_key, self.actions.of(best.action.reshape(batch)))
        # With a gradient, as QValueActor's: the maximum is taken without one.
        ids = best.action.unsqueeze(1)
        value = self.network.head(states, ids) if torch.is_grad_enabled() else best.value.unsqueeze(1)
        tensordict.set(self.value_key, value.reshape(*batch, 1))
        return tensordict

    def look_at(
        self, tensordict: TensorDictBase, network: StochQNetwork | None = None
    ) -> tuple[torch.Size, Tensor, Query]:
        """The batch's shape, the features of its N states (N, width) by the trunk of ``network``, by default
        this actor's, and a query about the states.
        """
        inputs = [read(tensordict, key) for key in self.observation_keys]
        features = (network or self.network).trunk(*inputs)  # (*B, width)
        batch = features.shape[:-1]
        states = features.reshape(-1, features.shape[-1])
        obs = flat_observation(self.observation_keys, inputs, len(batch))
        query = Query(len(states), states.device, obs)
        if self.action_mask_key is not None:
            mask = read(tensordict, self.action_mask_key)
            query.mask = mask.reshape(-1, mask.shape[-1])
        return batch, states, query

    def values(self, tensordict: TensorDictBase, ids: Tensor, network: StochQNetwork | None = None) -> Tensor:
        """Q(s, a) of one action each, by ``network``, by default this actor's: ids (\\*B,) -> (\\*B,)."""
        batch, states, _ = self.look_at(tensordict, network)
        return (network or self.network).head(states, ids.reshape(-1, 1)).reshape(batch)

    def bootstrap(
        self,
        tensordict: TensorDictBase,
        minibatch: Tensor,
        terminal: Tensor,
        network: StochQNetwork | None = None,
    ) -> Maximum:
        """The best candidates of the N states in ``tensordict``, which is not written to.

        Args:
            minibatch: the actions of the training batch: (any number,), or of trajectories (\\*B, T).
            terminal: in which of the N states an episode ended, (N,) bool; these need no legal action.
            network: whose values are maximised, by default this actor's.
        """
        _, states, query = self.look_at(tensordict, network)
        query.replay, query.minibatch, query.terminal = self.memory.draw, minibatch, terminal
        best = self.maximum.bootstrap((network or self.network).head, states, query)
        # What was drawn for acting serves one update. Where others act, no step would draw anew.
        self._new_step()
        return best

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.maximum.take_modules(self.learned)

    def _new_step(self) -> None:
        for source in self.maximum.sources:
            source.new_step()
