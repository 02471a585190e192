"""What can be done about a policy's context: fewer steps, or more tokens that the newest return is read from.

Tokens are inserted where a model was trained without them: these are interventions that ask what its
attention can still reach, and no claim that it then acts better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adapters.decision_transformer import NAMES, DecisionTransformerAdapter, entry
from ..adapters.protocol import RETURN
from ..grouping import group_ends, insert


def window_steps(batch: Any, steps: int) -> dict[str, Tensor]:
    """The last steps of a batch alone.

    Args:
        batch: as the adapters of policies take it, (B, T, ...) each.
        steps: to keep; all if there are fewer.

    Returns:
        The same entries under the same names; others, which policies do not read, are left out.

    Raises:
        ValueError: less than 1 step; episodes that are padded behind their end, whose last steps are none.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    mask = entry(batch, "mask")
    if mask is not None and not bool(mask.reshape(*mask.shape[:2])[:, -1].all()):
        raise ValueError(
            "some episodes are padded behind their end, where their last steps must be: pad in front"
        )
    names = {name for both in NAMES.values() for name in both}
    return {key: batch[key][:, -steps:] for key in batch.keys() if key in names}  # noqa: SIM118  as in `entry`


def insert_between_steps(
    model: DecisionTransformerAdapter, emb: Tensor, token: Tensor, every: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The same token after each ``every`` steps, counted back from the last one, as separators in text are.

    The acting state stays where the adapter reads it, since nothing comes behind the last step.

    Args:
        model: whose steps these are.
        emb: by ``model.embed``, (B, T * tokens of a step, d).
        token: (d,) or (B, d), in the space of ``emb``: a learned vector, a mean, zeros.
        every: steps.
        mask: (B, T * tokens of a step) bool, True for real tokens. An inserted token is real where the one
            before it is.

    Returns:
        The new emb and mask, None if there was none, and where each old token is in them.

    Raises:
        TypeError: another adapter, as that of RADT, whose returns are a stream of their own.
        ValueError: ``emb`` is not of whole steps; ``every`` less than 1.
    """
    if not isinstance(model, DecisionTransformerAdapter):
        raise TypeError(
            f"tokens can be inserted for a DecisionTransformerAdapter, not for {type(model).__name__}"
        )
    assert model.token_roles is not None
    size, n = len(model.token_roles), emb.shape[1]
    if n % size:
        raise ValueError(
            f"{type(model).__name__} has {size} tokens a step, which {n} tokens are no multiple of"
        )
    ends = [end * size for end in group_ends(n // size, every, "right")]
    new, old_to_new = insert(emb, ends, torch.atleast_2d(token)[:, None], dim=1)
    if mask is None:
        return new, None, old_to_new
    real, _ = insert(mask, ends, mask.new_zeros(()))
    inserted = torch.ones(new.shape[1], dtype=torch.bool, device=mask.device)
    inserted[old_to_new] = False
    real[:, inserted] = mask[:, [end - 1 for end in ends]]
    return new, real, old_to_new


def repeat_returns(
    model: DecisionTransformerAdapter, emb: Tensor, every: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Copies of the newest return's token after each ``every`` steps: more paths from it to the action.

    Arguments, results and errors are those of `insert_between_steps`.
    """
    roles = model.roles(emb.shape[1])
    assert roles is not None
    newest = int((roles == RETURN).nonzero()[-1])
    return insert_between_steps(model, emb, emb[:, newest], every, mask)
