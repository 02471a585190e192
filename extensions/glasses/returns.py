"""How much a policy that is told a return listens to it: how its action moves with each return in sight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter, check_adapter
from .adapters.decision_transformer import NAMES, entry, needed
from .adapters.protocol import RETURN, STATE
from .batches import place_of
from .precision import COMPUTED
from .results import Result
from .sensitivity import sensitivity_profile


@dataclasses.dataclass(frozen=True)
class ReturnSensitivity(Result):
    """What returns do to the newest action, for B windows of K steps.

    All but shares are in units of the action (or of logits): how far it moves, as a Euclidean norm over its
    features, when a return moves by one standard deviation of the batch.

    Attributes:
        std: of the returns of each step over the batch, in their own units, (K,).
        by_return: norm of d action / d R_t, times ``std``, (B, K); 0 for padding.
        newest_of_returns: share of the newest return in ``by_return``, (B,); NaN where no return does
            anything.
        newest_token, all_return_tokens, state_token: shares, among all tokens, of the Frobenius norm of the
            action's Jacobian: the newest return's token, all returns' together, the newest state's, (B,)
            each. To be compared within one model, not between models; see `return_sensitivity`.
        shift_newest: half the distance between the actions at R_T + std and R_T - std, R_T the newest return,
            (B,).
        shift_all: the same with each return moved by its own ``std`` at once, (B,).
    """

    std: Tensor
    by_return: Tensor
    newest_of_returns: Tensor
    newest_token: Tensor
    all_return_tokens: Tensor
    state_token: Tensor
    shift_newest: Tensor
    shift_all: Tensor


def return_sensitivity(
    model: Adapter,
    batch: Any,
    *,
    context: int | None = None,
    output: Callable[[Tensor], Tensor] | None = None,
) -> ReturnSensitivity:
    """Sensitivity of the newest action to returns, as numbers and as tokens.

    A return's token is compared with other tokens by its vector, after embedding; ``by_return`` and the
    shifts go back to the number itself. So shares depend on the scale of the vectors: with the embedding of
    returns times c, and all that reads it over c, the policy is the same and the share of returns smaller by
    about c. Between models compare ``by_return``, ``newest_of_returns`` and the shifts, which such a change
    leaves alone. With K steps, uniform attention and L layers, the newest return's
    token has about L / (3 K) of the attention that reaches the newest state, while that state's own token
    keeps the residual path: its share should fall about as 1 / K in a model that has not been trained. What
    training makes of it is what this measures.

    Computed in float32, or in float64 for a model in it.

    Args:
        model: `DecisionTransformerAdapter`, `RADTAdapter`, or another adapter of a policy whose
            ``token_roles`` have returns and states, in eval mode.
        batch: B windows as the adapter takes them, at least two. Returns are what the network itself embeds:
            a wrapper that scales them first is passed by, and they are to be given scaled.
        context: the last so many steps of the batch are taken; all if None.
        output: of the action as the network gives it, (B, A) -> (B, m): ``torch.tanh`` if a ``TanhDelta``
            stands behind it. None: that action itself, or the logits.

    Raises:
        TypeError: the model has no returns.
        ValueError: train mode; a window without real steps; fewer than two windows; a context out of range.
    """
    check_adapter(model)
    roles = [] if model.token_roles is None else model.token_roles.tolist()  # of the tokens of a step
    if RETURN not in roles or STATE not in roles:
        raise TypeError(
            "return_sensitivity takes a policy that is told returns, such as DecisionTransformerAdapter or "
            f"RADTAdapter; {type(model).__name__} has no tokens of returns and states"
        )
    model.check_ready()
    batch = last_steps(batch, context)
    returns = needed(batch, "return_to_go")  # (B, K, 1)
    if len(returns) < 2:
        raise ValueError("the standard deviation of returns needs a batch of at least 2 windows, got 1")
    mask = model.mask(batch)
    place = torch.as_tensor(place_of(model.position, returns.shape[1] * len(roles), mask))
    place = place.to(returns.device).expand(len(returns))  # (B,), the token at which the action is read
    newest = place // len(roles)  # (B,), its step
    real = None if mask is None else mask[:, :: len(roles)]  # (B, K)
    dtype = "float64" if model.dtype == "float64" else "float32"
    told = returns.detach().to(COMPUTED[dtype])
    std = _std(told[..., 0], real)  # (K,)

    def of(action: Tensor) -> Tensor:
        return action if output is None else output(action)

    def act(values: Tensor) -> Tensor:
        """(B, K, 1) -> (B, m)"""
        with model.running_in(dtype):
            emb = model.embed({**batch, "return_to_go": values})
            return of(model.readout(model.states(emb, mask, [model.depth], position=place)[0]))

    by_return = _gradient_norms(act, told) * std  # (B, K)
    rows = torch.arange(len(told), device=told.device)
    each_by_std = std[:, None].expand_as(told)
    newest_by_std = torch.zeros_like(told)
    newest_by_std[rows, newest, 0] = std[newest]
    share = sensitivity_profile(model, batch, output=lambda state: of(model.readout(state))).share
    share = share.to(told.device).unflatten(1, (-1, len(roles)))  # (B, K, tokens of a step)
    return ReturnSensitivity(
        std=std,
        by_return=by_return,
        newest_of_returns=by_return[rows, newest] / by_return.sum(1),
        newest_token=share[rows, newest, roles.index(RETURN)],
        all_return_tokens=share[..., roles.index(RETURN)].sum(1),
        state_token=share[rows, newest, roles.index(STATE)],
        shift_newest=_shift(act, told, newest_by_std),
        shift_all=_shift(act, told, each_by_std),
    )


def last_steps(batch: Any, context: int | None) -> dict[str, Tensor]:
    """The entries that policies know, by TorchRL's names, of the last real steps alone.

    Windows with fewer real steps than ``context`` keep padding, on the side where they have it. What is given
    once for all, as times (K,), is given to each.
    """
    entries = {name: value for name in NAMES if (value := entry(batch, name)) is not None}
    windows, steps = needed(entries, "return_to_go").shape[:2]
    for name, x in entries.items():
        each = x[None] if x.ndim == 1 else x
        entries[name] = each.expand(windows, *each.shape[1:])
    if context is None:
        return entries
    if not 1 <= context <= steps:
        raise ValueError(f"context must be from 1 to {steps}, the steps of the batch; got {context}")
    if "mask" not in entries:
        return {name: x[:, -context:] for name, x in entries.items()}
    real = entries["mask"].bool().reshape(windows, steps)
    end = (real * torch.arange(1, steps + 1, device=real.device)).amax(1)  # (B,), behind the last real step
    kept = (end - context).clamp(min=0)[:, None] + torch.arange(context, device=real.device)
    rows = torch.arange(windows, device=real.device)[:, None]
    return {name: x[rows, kept] for name, x in entries.items()}


def _std(returns: Tensor, real: Tensor | None) -> Tensor:
    """Of each step over the windows in which it is real, (B, K) -> (K,); 0 if there is but one."""
    weight = torch.ones_like(returns) if real is None else real.to(returns)
    count = weight.sum(0)
    mean = (weight * returns).sum(0) / count.clamp(min=1)
    squares = (weight * (returns - mean).square()).sum(0)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def _gradient_norms(act: Callable[[Tensor], Tensor], returns: Tensor) -> Tensor:
    """Norm over the action's features of its derivative by each return, (B, K)."""
    leaf = returns.clone().requires_grad_()
    with torch.enable_grad():
        action = act(leaf)  # (B, m)
        squares = torch.zeros_like(returns)
        if not action.requires_grad:  # a policy that reads no returns
            return squares[..., 0]
        for feature in action.sum(0):
            (by,) = torch.autograd.grad(feature, leaf, retain_graph=True)
            squares += by.square()
    return squares.sqrt()[..., 0]


@torch.no_grad()
def _shift(act: Callable[[Tensor], Tensor], returns: Tensor, by: Tensor) -> Tensor:
    """Half the distance between the actions at returns plus and minus ``by``, (B,)."""
    return (act(returns + by) - act(returns - by)).norm(dim=-1) / 2
