"""What an action spec says, and which are refused."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, TensorSpec

from ...stochmax.actions import ActionCodec, MixedRadix
from ...stochmax.legal import MASKED_UP_TO


def action_leaf(spec: TensorSpec, action_key: Any) -> TensorSpec:
    """The spec of the action in ``spec``, which may be a Composite that has it under ``action_key``."""
    if isinstance(spec, Composite):
        if action_key not in spec.keys(True, True):
            raise KeyError(f"the spec has no {action_key!r}; its keys are {list(spec.keys(True, True))}")
        spec = spec[action_key]
    return spec


def count_actions(spec: TensorSpec, masked: bool) -> int:
    """The number of actions of a spec with whole numbers.

    Args:
        spec: a ``Categorical`` or ``MultiCategorical``.
        masked: whether the masks that it may have are read from elsewhere.

    Raises:
        ValueError: a one-hot or binary spec; a mask of n above 10,000 actions, or one that nobody reads.
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
        return math.prod(spec.nvec.reshape(-1, spec.nvec.shape[-1])[0].tolist())
    if not isinstance(spec, Categorical):
        raise TypeError(
            f"expected a Categorical or MultiCategorical action spec, got {type(spec).__name__}. Cut a box "
            "into bins, decode them in the environment, and say what they are: "
            "StochQNetwork(trunk, BoxBins(...))."
        )
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


class Actions:
    """Ids to actions as a spec has them, and back: digits where it is a ``MultiCategorical``.

    Args:
        spec: checked by :func:`count_actions`.
        codec: what the network makes of ids.
    """

    def __init__(self, spec: TensorSpec | None, codec: ActionCodec) -> None:
        self.digits: MixedRadix | None = None
        if isinstance(spec, MultiCategorical):
            nvec = spec.nvec.reshape(-1, spec.nvec.shape[-1])[0].tolist()
            self.digits = MixedRadix(nvec)

    def of(self, ids: Tensor) -> Tensor:
        """Ids (\\*B,) -> actions, (\\*B,) or (\\*B, d)."""
        return ids if self.digits is None else self._on(ids).digits(ids)

    def ids(self, action: Tensor, batch_dims: int) -> Tensor:
        """Actions -> ids (\\*B,), with as many dimensions as ``batch_dims``."""
        if self.digits is not None:
            return (action.long() * self._on(action).place).sum(-1)
        return action.long().squeeze(-1) if action.ndim == batch_dims + 1 else action.long()

    def _on(self, like: Tensor) -> MixedRadix:
        assert self.digits is not None
        if self.digits.place.device != like.device:
            self.digits.to(like.device)
        return self.digits
