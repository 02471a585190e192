"""What an action spec and legal actions say, and which are refused."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec

from ...stochmax.actions import ActionCodec, MixedRadix
from ...stochmax.legal import MASKED_UP_TO, LegalActions, LegalMask
from ...stochmax.looking import may_look


def action_leaf(spec: TensorSpec, action_key: Any) -> TensorSpec:
    """The spec of one action in ``spec``, which may be a Composite, of a batch too, that has it under
    ``action_key``.
    """
    if not isinstance(spec, Composite):
        return spec
    if action_key not in spec.keys(True, True):
        raise KeyError(f"the spec has no {action_key!r}; its keys are {list(spec.keys(True, True))}")
    return spec[action_key][(0,) * len(spec.shape)]


def count_actions(spec: TensorSpec, masked: bool) -> int:
    """The number of actions of a spec with whole numbers.

    Args:
        spec: a ``Categorical`` or ``MultiCategorical``.
        masked: whether the masks that it may have are read from elsewhere.

    Raises:
        ValueError: a one-hot or binary spec; one of a batch; a mask of n above 10,000 actions, or one that
            nobody reads.
        TypeError: another spec.
    """
    if isinstance(spec, (OneHot, MultiOneHot, Binary)):
        raise ValueError(
            f"{type(spec).__name__} actions are n numbers each. Use whole numbers: "
            "GymEnv(..., categorical_action_encoding=True), or spec.to_categorical_spec() for a spec of your "
            "own. For Binary(k) that is MultiCategorical([2] * k)."
        )
    if isinstance(spec, MultiCategorical):
        if spec.mask is not None:
            raise ValueError(
                "The spec has a mask of digits, which is not taken. Leave it out and give legal_actions: a "
                "list of flat ids, or a function from observations to ids (B, L), padded with -1."
            )
        _one_action(spec, spec.shape[-1:])
        return math.prod(spec.nvec.tolist())
    if not isinstance(spec, Categorical):
        raise TypeError(
            f"expected a Categorical or MultiCategorical action spec, got {type(spec).__name__}. Cut a box "
            "into bins, decode them in the environment, and say what they are: "
            "StochQNetwork(trunk, BoxBins(...))."
        )
    _one_action(spec, spec.shape if spec.shape == (1,) else ())
    n = int(spec.n)
    if getattr(spec, "mask", None) is not None:
        if n > MASKED_UP_TO:
            raise ValueError(
                f"The spec has a mask of n = {n:,} actions; masks are taken up to {MASKED_UP_TO:,} (and a "
                "masked Categorical cannot be sampled above 2**24). Leave the mask out and give "
                "legal_actions: a list of ids, or a function from observations to ids (B, L), padded with -1."
            )
        if not masked:
            raise ValueError("The spec has a mask: say where each step's mask is, with action_mask_key.")
    return n


def _one_action(spec: TensorSpec, shape: Any) -> None:
    if spec.shape != shape:
        raise ValueError(
            f"A {type(spec).__name__} of shape {tuple(spec.shape)} is of many actions at once. Give that of "
            "one, env.action_spec_unbatched; or MultiCategorical(nvec), if a step takes several."
        )


def what_is_legal(legal_actions: Any, masked: bool, codec: ActionCodec) -> LegalActions | LegalMask | None:
    """The legal actions by lists, or by masks that are read from elsewhere; None if all are legal.

    Raises:
        ValueError: both; a mask of n above 10,000 actions; ids that there are not.
    """
    if masked:
        if legal_actions is not None:
            raise ValueError("give legal_actions or action_mask_key, not both")
        return LegalMask(codec)
    return None if legal_actions is None else LegalActions(legal_actions, codec)


class Actions:
    """Ids to actions as a spec has them, and back: digits where it is a ``MultiCategorical``.

    Args:
        spec: checked by :func:`count_actions`; None is a ``Categorical`` of shape ().
        codec: what the network makes of ids.

    Attributes:
        shape: of one action: (), (1,) if the spec says so, or (d,) digits.
    """

    def __init__(self, spec: TensorSpec | None, codec: ActionCodec) -> None:
        self.n = codec.n
        self.shape = torch.Size() if spec is None else spec.shape
        self.digits = MixedRadix(spec.nvec.tolist()) if isinstance(spec, MultiCategorical) else None

    def of(self, ids: Tensor) -> Tensor:
        """Ids (\\*B,) -> actions (\\*B, \\*shape)."""
        return ids.reshape(ids.shape + self.shape) if self.digits is None else self._on(ids).digits(ids)

    def ids(self, action: Tensor, batch_dims: int) -> Tensor:
        """Actions -> ids (\\*B,), with as many dimensions as ``batch_dims``.

        Raises:
            ValueError: actions of another shape, that are no integers, or (not looked at on a GPU) that there
                are not.
        """
        found = f"the actions are {tuple(action.shape)} {action.dtype}"
        one_hot = action.shape[batch_dims:] == (self.n,) and self.n > 1 and self.digits is None
        if one_hot or action.dtype == torch.bool:
            raise ValueError(
                f"{found}, as if one-hot; they must be whole numbers: "
                "GymEnv(..., categorical_action_encoding=True)"
            )
        if action.is_floating_point():
            raise ValueError(f"{found}; they must be whole numbers: cast them, action.long()")
        shapes = [(), (1,)] if self.digits is None else [self.shape]
        if action.shape[batch_dims:] not in shapes:
            expected = "one id" if self.digits is None else f"{self.shape[0]} digits"
            raise ValueError(
                f"{found}; expected {expected} for each of a batch {tuple(action.shape[:batch_dims])}"
            )
        if self.digits is not None:
            codec = self._on(action)
            return codec.encode(action) if may_look(action) else (action.long() * codec.place).sum(-1)
        ids = action.long().reshape(action.shape[:batch_dims])
        if may_look(ids) and bool(((ids < 0) | (ids >= self.n)).any()):
            raise ValueError(
                f"actions from {int(ids.min())} to {int(ids.max())}; they must be in 0..{self.n - 1}"
            )
        return ids

    def _on(self, like: Tensor) -> MixedRadix:
        assert self.digits is not None
        if self.digits.place.device != like.device:
            self.digits.to(like.device)
        return self.digits
