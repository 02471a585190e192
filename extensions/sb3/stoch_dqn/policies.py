from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

from ...optim import RowAdam
from ...stochmax.actions import ActionCodec, IdCodec
from ...stochmax.candidates import ExactMaximum, SampledMaximum, resolve, same_draws
from ...stochmax.heads import available_bytes, check_memory, choose_head, make_head
from ...stochmax.legal import LegalActions
from ...stochmax.memories import MostExploited
from ...stochmax.rows import RowTable, TargetRows
from ...stochmax.sources import Query, Source, flatten_observations


class StochQNetwork(QNetwork):
    """
    Action-value network that is asked for a few actions at a time

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Features extractor
    :param features_dim: Width of the extracted features
    :param net_arch: The specification of the state tower
    :param activation_fn: Activation function
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param head: How Q is computed for an action: ``"linear"``, ``"row"``, ``"low_rank"`` or ``"feature"``
    :param head_kwargs: Keyword arguments of the head, e.g. ``dict(rank=32)``
    :param action_codec: What the action ids stand for
    :param is_target: Whether this is a target network, whose rows follow the online ones
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        head: str = "linear",
        head_kwargs: dict[str, Any] | None = None,
        action_codec: ActionCodec | None = None,
        is_target: bool = False,
    ) -> None:
        # Past QNetwork's own constructor, which would build n outputs.
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.net_arch = [64, 64] if net_arch is None else net_arch
        self.activation_fn = activation_fn
        self.features_dim = features_dim
        self.head_name = head
        self.head_kwargs = head_kwargs or {}
        self.action_codec = IdCodec(int(action_space.n)) if action_codec is None else action_codec
        self.is_target = is_target

        # Layers in QNetwork's order, so that with a linear head the same seed gives the same weights.
        self.q_net = nn.Sequential(*create_mlp(features_dim, -1, self.net_arch, activation_fn))
        width = self.net_arch[-1] if self.net_arch else features_dim
        self.head: Any = make_head(head, width, self.action_codec, is_target, **self.head_kwargs)

    def state_tower(self, obs: PyTorchObs) -> th.Tensor:
        """
        What the head sees of a state; computed once however many actions are asked for.

        :param obs: Observations, B of them
        :return: (B, width)
        """
        return self.q_net(self.extract_features(obs, self.features_extractor))

    def forward(self, obs: PyTorchObs, ids: th.Tensor | None = None) -> th.Tensor:
        """
        Predict the q-values.

        :param obs: Observations, B of them
        :param ids: Actions (B, C), or (C,) for all states alike; None for all n, which is O(n)
        :return: (B, C), or (B, n)
        """
        return self.head(self.state_tower(obs), ids)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        states = self.state_tower(observation)
        return ExactMaximum(self.action_codec)(self.head, states, Query(len(states), states.device)).action

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            head=self.head_name,
            head_kwargs=self.head_kwargs,
            action_codec=self.action_codec,
            is_target=self.is_target,
        )
        return data


class StochDQNPolicy(DQNPolicy):
    """
    Policy class of StochDQN: Q-value net, target net, and the candidates that both are maximised over

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: The specification of the state tower
    :param activation_fn: Activation function
    :param features_extractor_class: Features extractor to use.
    :param features_extractor_kwargs: Keyword arguments
        to pass to the features extractor.
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use, ``RowAdam`` by default, which is ``th.optim.Adam`` but for
        rows.
    :param optimizer_kwargs: Additional keyword arguments,
        excluding the learning rate, to pass to the optimizer
    :param candidates: See :class:`StochDQN`
    :param eval_candidates: See :class:`StochDQN`
    :param head: See :class:`StochDQN`
    :param head_kwargs: See :class:`StochDQN`
    :param action_codec: See :class:`StochDQN`
    :param legal_actions: See :class:`StochDQN`
    :param training_device: Where the policy will be moved to; its memory is what must suffice
    """

    q_net: StochQNetwork
    q_net_target: StochQNetwork
    exploited: MostExploited

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = RowAdam,
        optimizer_kwargs: dict[str, Any] | None = None,
        candidates: str | Sequence[Source] = "log",
        eval_candidates: int | str = 1024,
        head: str = "auto",
        head_kwargs: dict[str, Any] | None = None,
        action_codec: ActionCodec | None = None,
        legal_actions: Any = None,
        training_device: th.device | str = "cpu",
    ) -> None:
        n = int(action_space.n)
        self.training_device = training_device
        self.stoch_args = {
            "candidates": candidates,
            "eval_candidates": eval_candidates,
            "head": head,
            "head_kwargs": head_kwargs,
            "action_codec": action_codec,
            "legal_actions": legal_actions,
        }
        codec = IdCodec(n) if action_codec is None else action_codec
        _check_action_space(action_space, codec)
        self.head_args: dict[str, Any] = {
            "head": choose_head(codec) if head == "auto" else head,
            "head_kwargs": head_kwargs or {},
            "action_codec": codec,
        }
        if optimizer_class is RowAdam:
            if self.head_args["head"] in ("row", "low_rank"):
                optimizer_kwargs = {"row_lr_scale": 10.0, **(optimizer_kwargs or {})}
                _check_row_adam(optimizer_kwargs)
            elif "row_lr_scale" not in (optimizer_kwargs or {}):
                optimizer_class = th.optim.Adam  # the same without rows, and it takes all of Adam's arguments
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
        )
        #: draws k actions of the replay: k -> (k,); set by the algorithm, absent from a policy on its own
        self.sample_replay: Callable[[int], th.Tensor] | None = None
        legal = None if legal_actions is None else LegalActions(legal_actions, codec)
        self.register_buffer("n_actions", th.tensor(n))  # a feature head fits any n: its checkpoint must say
        self._build_maxima(candidates, eval_candidates, codec, legal)

    def _build(self, lr_schedule: Schedule) -> None:
        self.q_net = self.make_q_net()
        self.q_net_target = self.make_q_net(is_target=True)
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.q_net_target.set_training_mode(False)
        for target_rows, rows in self._row_tables():
            target_rows.follow(rows)
        plain_sgd = issubclass(self.optimizer_class, th.optim.SGD) and not any(
            self.optimizer_kwargs.get(key) for key in ("momentum", "weight_decay")
        )
        if self.q_net.head.tables and not (plain_sgd or issubclass(self.optimizer_class, RowAdam)):
            raise ValueError(
                f"head={self.head_args['head']!r} has sparse gradients, which "
                f"{self.optimizer_class.__name__} does not take (SGD does, without momentum and weight "
                "decay). Leave optimizer_class at its default, RowAdam, or use head='linear' or 'feature'."
            )
        self.optimizer = self.optimizer_class(
            self.q_net.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def make_q_net(self, is_target: bool = False) -> StochQNetwork:
        net_args: dict[str, Any] = self._update_features_extractor(self.net_args, features_extractor=None)
        if not is_target:  # one check, before anything is allocated, covers both nets and the optimizer
            width = self.net_arch[-1] if self.net_arch else net_args["features_dim"]
            head, kwargs, codec = (self.head_args[key] for key in ("head", "head_kwargs", "action_codec"))
            check_memory(head, width, codec, available_bytes(self.training_device), **kwargs)
        return StochQNetwork(**net_args, **self.head_args, is_target=is_target).to(self.device)

    def _build_maxima(
        self,
        candidates: str | Sequence[Source],
        eval_candidates: int | str,
        codec: ActionCodec,
        legal: LegalActions | None,
    ) -> None:
        """
        Make what is maximised over: in training, and in deterministic prediction.
        """
        exact = eval_candidates == "all"
        if not exact and not (isinstance(eval_candidates, (int, np.integer)) and eval_candidates >= 1):
            raise ValueError(f"eval_candidates must be 'all' or an integer >= 1, got {eval_candidates!r}")
        sources = resolve(candidates, codec.n)
        self.maximum: SampledMaximum | ExactMaximum = ExactMaximum(codec, legal)
        self.eval_maximum: SampledMaximum | ExactMaximum = ExactMaximum(codec, legal)
        # Saved with the policy: a model loaded without its replay predicts as it did before. It is there, if
        # empty, when the maximum is exact, so that a model may be loaded with other candidates.
        self.exploited = MostExploited(1 if exact else int(eval_candidates))
        if sources is not None:
            self.maximum = SampledMaximum(sources, codec, legal)
        self.learned = self.maximum.build_modules(get_flattened_obs_dim(self.observation_space))
        if isinstance(self.maximum, SampledMaximum) and not exact and codec.n > int(eval_candidates):
            self.eval_maximum = self.maximum.widened(int(eval_candidates))

    # -- acting --

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        states = self.q_net.state_tower(obs)
        query = Query(len(states), states.device, obs, self._recall, flatten=self.flatten)
        if not deterministic:
            query.replay = self.sample_replay or self._recall
            return self.maximum(self.q_net.head, states, query).action
        with same_draws(states.device):
            return self.eval_maximum(self.q_net.head, states, query).action

    def flatten(self, obs: PyTorchObs) -> th.Tensor:
        """
        Observations as rows of numbers, one-hot or scaled as for the network.

        :param obs: Observations, B of them
        :return: (B, width)
        """
        return flatten_observations(
            preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)
        )

    def explore(self, obs: PyTorchObs, batch: int) -> th.Tensor | None:
        """
        A uniform legal action for each of ``batch`` observations, or None if all actions are legal.
        """
        legal = self.maximum.legal
        return None if legal is None else legal.draw(Query(batch, self.device, obs), 1).squeeze(1)

    def executed(self, obs: PyTorchObs, actions: np.ndarray) -> None:
        """
        Hear of actions that were executed because they were the best.

        :param obs: Observations, B of them
        :param actions: Actions (B,)
        """
        for source in self.maximum.sources:
            source.executed(obs, th.as_tensor(actions, device=self.device))

    def hears_what_is_executed(self) -> bool:
        """
        Whether a source has a use for :meth:`executed`
        """
        return any(type(source).executed is not Source.executed for source in self.maximum.sources)

    def _recall(self, k: int) -> th.Tensor:
        """Actions exploited most often of late, at most k: (<= k,)."""
        return self.exploited.ids()[:k].to(self.device)

    # -- training --

    def dense_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """
        The parameters of the online and of the target net that are not rows.
        """
        rows = {id(table.weight) for net in (self.q_net, self.q_net_target) for table in net.head.tables}
        online, target = (
            [p for p in net.parameters() if id(p) not in rows] for net in (self.q_net, self.q_net_target)
        )
        return online, target

    def before_update(self) -> None:
        """
        To be called between the backward pass and the optimizer's step: rows are about to change.
        """
        for target_rows, rows in self._row_tables():
            ids = rows.grad_rows()
            if ids is not None:
                target_rows.before_update(ids)

    def sync_rows(self, tau: float) -> None:
        """
        Move the target's rows towards the online rows by ``tau``.
        """
        for target_rows, _ in self._row_tables():
            target_rows.sync(tau)

    def rows_touched(self) -> float | None:
        """
        The fraction of rows ever trained, or None without rows.
        """
        for _, rows in self._row_tables():
            return len(rows.touched_ids()) / self.head_args["action_codec"].n
        return None

    def _row_tables(self) -> Iterator[tuple[TargetRows, RowTable]]:
        yield from zip(self.q_net_target.head.tables, self.q_net.head.tables, strict=True)

    # -- saving --

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sample_replay": None}  # the model's: not for copies of the policy

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.maximum.take_modules(self.learned)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self.stoch_args)
        return data


MlpPolicy = StochDQNPolicy


class CnnPolicy(StochDQNPolicy):
    """
    Policy class of StochDQN for images: :class:`StochDQNPolicy` with ``NatureCNN`` as the features extractor
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class MultiInputPolicy(StochDQNPolicy):
    """
    Policy class of StochDQN for dict observations: :class:`StochDQNPolicy` with ``CombinedExtractor``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)


def _check_action_space(action_space: spaces.Discrete, codec: ActionCodec) -> None:
    if int(action_space.start) != 0:
        raise ValueError(
            f"StochDQN needs actions 0..n-1, but the space starts at {action_space.start}. Wrap the "
            "environment so that "
            f"it adds {action_space.start} to each action, and use Discrete({action_space.n})."
        )
    if codec.n != int(action_space.n):
        raise ValueError(f"action_codec has {codec.n} actions, the environment has {action_space.n}")


def _check_row_adam(optimizer_kwargs: dict[str, Any]) -> None:
    unknown = optimizer_kwargs.keys() - inspect.signature(RowAdam).parameters.keys()
    if unknown:
        raise ValueError(
            f"RowAdam, which trains heads with rows, takes no {', '.join(sorted(unknown))}: rows that a step "
            "does not touch must stay as they are. Leave it out, or use head='linear' or 'feature'."
        )
