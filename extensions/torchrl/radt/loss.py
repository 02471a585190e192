"""Losses of RADT: those that TorchRL has for the Decision Transformer, over real steps alone."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch.nn import functional as F
from torchrl.objectives import DTLoss, LossModule, OnlineDTLoss
from torchrl.objectives.utils import distance_loss

LOSS_FUNCTIONS = ("l2", "l1", "smooth_l1", "cross_entropy")
MASK = "mask"


class HonoursMask(LossModule):
    """A loss that by itself finds a mask of the name "mask", beside those that TorchRL's losses find; one
    that was named by ``loss_mask_key`` instead is the only one."""

    def _loss_mask_keys(self) -> tuple[NestedKey, ...]:
        keys = super()._loss_mask_keys()
        return (MASK, *keys) if self.loss_mask_key == "auto" else keys

    def _target(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The data's actions, 0 where they are padded: nothing there, NaN neither, is to reach a gradient."""
        target = tensordict.get(self.tensor_keys.action_target)
        for key in self._loss_mask_keys():
            mask = tensordict.get(key, None)
            if mask is not None:
                target = target.masked_fill(~self._expand_loss_mask(mask, target), 0)
        return target


class RADTLoss(HonoursMask, DTLoss):
    """Distance of an actor's actions to those of the data, averaged over real steps.

    :class:`torchrl.objectives.DTLoss` with a mask, ``(*, T)`` or ``(*, T, 1)`` bool, True where a step is
    real, at "mask", or where ``loss_mask_key`` says; all steps count if there is none. By keyword arguments
    the loss takes what ``in_keys`` has, and so a mask only if the actor takes one. And with
    ``"cross_entropy"`` for discrete actions: of logits, ``(*, T, n)``, at the key ``action_pred``, which is
    then "logits" unless set, to actions as indices, ``(*, T)`` int64, or one-hot.

    Args:
        actor_network: the actor.
        loss_function: ``"l2"``, ``"l1"``, ``"smooth_l1"`` or ``"cross_entropy"``.
        reduction: ``"mean"``, over real steps (and features of the action), ``"sum"`` or ``"none"``.
        device: as in ``DTLoss``.

    Returns, as a tensordict:
        "loss".

    Raises:
        ValueError: an unknown ``loss_function``; actions that do not fit it; an actor that writes no
            ``action_pred``.
    """

    actor_network: TensorDictModule
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        *,
        loss_function: str = "l2",
        reduction: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        if loss_function not in LOSS_FUNCTIONS:
            raise ValueError(
                f"loss_function must be one of {', '.join(LOSS_FUNCTIONS)}; got {loss_function!r}"
            )
        super().__init__(actor_network, loss_function=loss_function, reduction=reduction, device=device)
        if loss_function == "cross_entropy":
            self.set_keys(action_pred="logits")

    def _set_in_keys(self) -> None:
        self._in_keys = sorted({*self.actor_network.in_keys, self.tensor_keys.action_target}, key=str)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss on a batch of windows."""
        tensordict = tensordict.copy()
        target = self._target(tensordict).detach()
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            predicted = self.actor_network(tensordict).get(self.tensor_keys.action_pred, None)
        if predicted is None:
            raise ValueError(
                f"the actor writes {', '.join(map(repr, self.actor_network.out_keys))}, and no "
                f"{self.tensor_keys.action_pred!r}; name its output by set_keys(action_pred=...)"
            )
        loss = self._reduce_loss(self._distance(predicted, target), tensordict=tensordict)
        out = TensorDict(loss=loss)
        self._clear_weakrefs(tensordict, out, "actor_network_params", "target_actor_network_params")
        return out

    def _distance(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.loss_function != "cross_entropy":
            if not target.is_floating_point():
                raise ValueError(
                    f"actions of {target.dtype} are discrete and have no distance; use "
                    'loss_function="cross_entropy"'
                )
            return distance_loss(predicted, target, self.loss_function)
        if target.shape == predicted.shape:  # one-hot
            target = target.float().argmax(-1)
        if target.shape != predicted.shape[:-1]:
            raise ValueError(
                f"For logits {tuple(predicted.shape)} actions must be indices {tuple(predicted.shape[:-1])} "
                f"or one-hot {tuple(predicted.shape)}; got {tuple(target.shape)}"
            )
        losses = F.cross_entropy(predicted.flatten(0, -2), target.flatten().long(), reduction="none")
        return losses.view(target.shape)


class OnlineRADTLoss(HonoursMask, OnlineDTLoss):
    """Negative log-likelihood of the data's actions with a bound on the policy's entropy, over real steps.

    :class:`torchrl.objectives.OnlineDTLoss`, whose arguments and outputs it has, with a mask as
    :class:`RADTLoss` has it, which counts for the entropy that is reported too.
    """

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses on a batch of windows."""
        tensordict = tensordict.copy()
        target = self._target(tensordict)
        if target.requires_grad:
            raise RuntimeError("target action cannot be part of a graph.")
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            policy = self.actor_network.get_dist(tensordict)
        entropy = self.get_entropy_bonus(policy)  # (*, T)
        alpha = self.alpha.detach()
        losses = {
            "loss_log_likelihood": -policy.log_prob(target),
            "loss_entropy": -alpha * entropy,
            "loss_alpha": self.log_alpha.exp() * (entropy - self.target_entropy).detach(),
        }
        out = TensorDict(
            {name: self._reduce_loss(loss, tensordict=tensordict) for name, loss in losses.items()},
            tensordict.batch_size if self.reduction == "none" else [],
        )
        mean_entropy = self._reduce_loss(entropy.detach(), tensordict=tensordict, reduction="mean")
        if self.reduction != "none":
            out.update({"entropy": mean_entropy, "alpha": alpha})
        elif self.scalar_output_mode == "non_tensor":
            out.set_non_tensor("alpha", alpha)
            out.set_non_tensor("entropy", mean_entropy)
        self._clear_weakrefs(tensordict, out, "actor_network_params", "target_actor_network_params")
        return out
