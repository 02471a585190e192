"""The loss: DQN's, with the maximum over candidates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.nn.params import Buffer
from tensordict.utils import unravel_key
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchrl.objectives import DQNLoss
from torchrl.objectives.utils import distance_loss

from ...stochmax.rows import RowTable, TargetRows, target_copy
from .actor import StochQValueActor
from .keys import read
from .network import StochQNetwork


class StochDQNLoss(DQNLoss):
    """:class:`torchrl.objectives.DQNLoss` with the stochastic maximum (Fourati et al., ICML 2024): an update
    costs O(log n).

    The target is ``r + gamma (1 - terminated) max_{b in C} Q_target(s', b)`` over the candidates C of the
    actor; with ``double_dqn`` the online network chooses among them and the target network evaluates. With
    ``candidates="all"`` it is DQNLoss.

    Arguments, keys, estimators (``TD0``, ``TD1``, ``TDLambda``; n steps by
    :class:`torchrl.envs.transforms.MultiStepTransform`), priorities and weights are DQNLoss's. Use the
    updaters of this package, which move a million target rows by counting; TorchRL's give the same values, at
    O(n) a step.

    Rows of a table are announced to their target in ``forward``. If you change rows of the network in
    another way, by a second loss or by hand, call :meth:`before_update` first. An optimizer must change those
    rows only that the gradient names: not SGD with momentum.

    Args:
        value_network: a :class:`StochQValueActor`, or a :class:`StochQNetwork` to make one of.

    Keyword Args:
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        delay_value: whether there is a target network.
        double_dqn: whether the online network selects (needs ``delay_value``).
        action_space: for a plain network, as in DQNLoss: ``"categorical"``, or the action's spec.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        use_prioritized_weights: as in DQNLoss.

    Raises:
        TypeError: a network with n outputs.
        ValueError: ``double_dqn`` without ``delay_value``; a one-hot ``action_space``; lazy layers that do
            not know their sizes yet.
        KeyError: when called with a tensordict that lacks a key; names ``set_keys``.

    Examples:
        >>> loss = StochDQNLoss(StochQValueActor(StochQNetwork(torchrl.modules.MLP(4, 64), 1_000_000)))
        >>> updater = HardUpdate(loss, value_network_update_interval=200)
        >>> optimizer = RowAdam(loss.parameters())
    """

    value_network: Any
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    def __init__(
        self,
        value_network: StochQValueActor | StochQNetwork,
        *,
        loss_function: str | None = "l2",
        delay_value: bool = True,
        double_dqn: bool = False,
        gamma: float | None = None,
        action_space: Any = None,
        priority_key: str | None = None,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        if isinstance(action_space, str) and action_space != "categorical":
            raise ValueError(
                f"action_space={action_space!r} has n numbers an action; it must be 'categorical' or a spec"
            )
        if isinstance(value_network, StochQNetwork):
            spec = None if isinstance(action_space, str) else action_space
            value_network = StochQValueActor(value_network, spec=spec)
        if not isinstance(value_network, StochQValueActor):
            raise TypeError(
                f"StochDQNLoss takes a StochQValueActor alone, without exploration, got "
                f"{type(value_network).__name__}. Make one: "
                "StochQValueActor(StochQNetwork(trunk, n), spec=env.action_spec_unbatched)."
            )
        super().__init__(
            value_network,
            loss_function=loss_function,
            delay_value=delay_value,
            double_dqn=double_dqn,
            gamma=gamma,
            action_space="categorical",
            priority_key=priority_key,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
        )

    def convert_to_functional(
        self, module: Any, module_name: str, *args: Any, create_target_params: bool = False, **kwargs: Any
    ) -> None:
        """As LossModule's, but for the target: rows that follow lazily, and not a copy of all n."""
        if any(is_lazy(p) for p in module.parameters()):
            raise ValueError(
                "The network has lazy layers whose sizes are not known yet: call the actor once, as in "
                "actor(env.reset()), before making the loss, or give in_features."
            )
        super().convert_to_functional(module, module_name, *args, create_target_params=False, **kwargs)
        # What the actor remembers and its sources learn is not of the network; it is registered here to move
        # and be saved with it.
        online = getattr(self, f"{module_name}_params")
        setattr(self, f"{module_name}_params", TensorDictParams(online.select("network"), no_convert=True))
        self.memory, self.learned = module.memory, module.learned
        self.__dict__["_target_network"] = None
        if not create_target_params:
            return
        target = target_copy(module.network)
        params = TensorDict.from_module(target, as_module=False).apply(
            lambda x: Buffer(x.data) if isinstance(x, nn.Parameter) else x, filter_empty=False
        )
        # In __dict__, as LossModule keeps the online module: its parameters are those above.
        self.__dict__["_target_network"] = target
        params = TensorDictParams(TensorDict(network=params), no_convert=True)
        setattr(self, f"target_{module_name}_params", params)
        self._has_update_associated[module_name] = False

    def row_tables(self) -> Iterator[tuple[TargetRows, RowTable]]:
        """The tables of the target network, and those they follow; none without a target network or rows."""
        target = self.__dict__["_target_network"]
        if target is not None:
            for module in target.modules():
                if isinstance(module, TargetRows):
                    yield module, module._online[0]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """With the parameters of this loss in its networks, as LossModule keeps them apart, and the target
        network in the mode, train or eval, of the online one.
        """
        target = self.__dict__["_target_network"]
        if target is not None:  # in LossModule it is the same network with other parameters
            for mine, online in zip(target.modules(), self.value_network.network.modules(), strict=True):
                if mine.training != online.training:
                    mine.training = online.training
        with self.value_network_params.to_module(self.value_network, preserve_module_state=False):
            if target is None:
                yield
                return
            with self.target_value_network_params.get("network").to_module(
                target, preserve_module_state=False
            ):
                yield

    def from_stateful_net(self, network_name: str, stateful_net: Any) -> None:
        """As LossModule's. What the actor remembers and its sources learned stays, and so does the target."""
        tables = [module for module in stateful_net.network.modules() if isinstance(module, RowTable)]
        for table in tables:
            table.mark(table.weight.detach().any(1).nonzero())  # whoever wrote them
        with self.in_place():
            for (rows, _), table in zip(self.row_tables(), tables, strict=False):
                rows.settle()
                rows.before_update(table.touched_ids())
        super().from_stateful_net(network_name, nn.ModuleDict({"network": stateful_net.network}))

    def _apply(self, fn: Any) -> StochDQNLoss:
        super()._apply(fn)
        self._share_parameters()  # a buffer that moves is another tensor
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share_parameters()  # TensorDictParams copies its tensors without asking who else has them

    def _share_parameters(self) -> None:
        """Let the networks have the tensors that are the parameters of this loss."""
        self.value_network_params.to_module(self.value_network)
        target = self.__dict__["_target_network"]
        if target is not None:
            self.target_value_network_params.get("network").to_module(target)

    def reset_parameters_recursive(self) -> None:
        """Draw the parameters of both networks anew, each by itself as LossModule does; rows become zero."""
        with self.in_place():
            for network in filter(None, (self.value_network.network, self.__dict__["_target_network"])):
                for module in reversed([*network.modules()]):  # what holds layers after these
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()

    def before_update(self, action: Tensor) -> None:
        """To be called before anything but an update of this loss changes rows of the ids ``action``."""
        with self.in_place():
            self._before_update(action)

    def _before_update(self, ids: Tensor) -> None:
        for rows, _ in self.row_tables():
            rows.before_update(ids)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss of transitions, and their ``"td_error"`` written to ``tensordict`` for priorities.

        Args:
            tensordict: what :attr:`in_keys` names, (\\*B, ...); trajectories have time last in B.

        Returns:
            TensorDict: ``"loss"``.
        """
        ids = self._ids(tensordict)  # (*B,)
        for key in (self.tensor_keys.reward, self.tensor_keys.done):
            read(
                tensordict,
                unravel_key(("next", key)),
                ": say where the rest of a transition is, with set_keys",
            )
        with self.in_place():
            value = self.value_network.values(tensordict, ids)  # (*B,)
            with torch.no_grad():
                next_value = self._next_value(tensordict, ids)  # (*B, 1)
                self._before_update(ids)
                self.value_network.memory.add(ids.reshape(-1))
        with torch.no_grad():
            # A copy, because estimators write to what they are given.
            target_value = self.value_estimator.value_estimate(
                tensordict.clone(False), target_params=self.target_value_network_params, next_value=next_value
            ).squeeze(-1)
            td_error = (value - target_value).square().unsqueeze(-1)
        if tensordict.device is not None:
            td_error = td_error.to(tensordict.device)
        tensordict.set(self.tensor_keys.priority, td_error, inplace=True)

        loss = distance_loss(value, target_value, self.loss_function)
        weighted = self.use_prioritized_weights in (True, "auto")
        weights = None
        if weighted and self.tensor_keys.priority_weight in tensordict.keys(True):
            weights = tensordict.get(self.tensor_keys.priority_weight)
        loss = self._reduce_loss(loss, tensordict=tensordict, weights=weights)
        out = TensorDict(loss=loss)
        self._clear_weakrefs(tensordict, out, "value_network_params", "target_value_network_params")
        return out

    def _ids(self, tensordict: TensorDictBase) -> Tensor:
        key = self.tensor_keys.action
        action = read(tensordict, key, ": say where the action is, with set_keys(action=...)")
        return self.value_network.actions.ids(action, tensordict.ndim)

    def _next_value(self, tensordict: TensorDictBase, ids: Tensor) -> Tensor:
        """The maximum over the candidates of the next states: (\\*B, 1)."""
        following, actor, target = (
            tensordict.get("next"),
            self.value_network,
            self.__dict__["_target_network"],
        )
        # As the estimators do: an environment without "terminated" ends by "done".
        terminal = following.get(self.tensor_keys.terminated, following.get(self.tensor_keys.done))
        minibatch, terminal = torch.atleast_1d(ids), terminal.reshape(-1).bool()  # (N,)
        if self.double_dqn:
            chosen = actor.bootstrap(following, minibatch, terminal).action  # (N,)
            return actor.values(following, chosen.reshape(ids.shape), target).unsqueeze(-1)
        best = actor.bootstrap(following, minibatch, terminal, target)
        return best.value.reshape(*ids.shape, 1)

    # -- checkpoints: large tables by the rows that were touched, as their modules save them --

    def _tables(self) -> Iterator[tuple[str, RowTable]]:
        """The large tables under the names that a state dict has for them, the online ones first."""
        networks = {"value_network_params": self.value_network.network}
        if self.__dict__["_target_network"] is not None:
            networks["target_value_network_params"] = self.__dict__["_target_network"]
        for params, network in networks.items():
            for name, module in network.named_modules():
                if isinstance(module, RowTable) and len(module.weight) > RowTable.DENSE_BELOW:
                    yield f"{params}.network.{name}.", module

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        """As any module's; of a table of more than 65,536 rows the rows that were ever touched."""
        with self.in_place():
            for rows, _ in self.row_tables():
                rows.settle()
            state = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
            for name, table in self._tables():
                for key in ("weight", "touched", "syncs", "synced_at"):
                    state.pop(f"{prefix}{name}{key}", None)
                table.save_rows(state, prefix + name)
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for params in ("value_network_params", "target_value_network_params"):
            name = f"{prefix}{params}"
            if params in self._modules and not any(key.startswith(name + ".") for key in state_dict):
                raise RuntimeError(f"the state dict has no {name}: it is of a loss with another delay_value")
        if self._value_estimator is None and any(
            key.startswith(f"{prefix}_value_estimator.") for key in state_dict
        ):
            self.make_value_estimator()  # as the first forward would; another kind is the user's to make
        with self.in_place():
            for name, table in self._tables():
                name = prefix + name
                if f"{name}row_ids" in state_dict:
                    table.load_rows(state_dict, name, args[-1])
                # To be loaded once more by the parameters that hold them: of themselves.
                for key in ("row_ids", "row_values", "row_shape"):
                    state_dict.pop(name + key, None)
                for key in ("weight", "touched", "syncs", "synced_at"):
                    if hasattr(table, key):
                        state_dict.setdefault(name + key, getattr(table, key).data)
        super()._load_from_state_dict(state_dict, prefix, *args)
