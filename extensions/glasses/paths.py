"""Ways of information through the layers: how many, how much goes through them, and what bounds it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .results import Result
from .sensitivity import SensitivityProfile


def path_profile(
    attentions: Sequence[Tensor],
    *,
    heads: str = "mean",
    beta1: float = 1.0,
    residual: str = "sum",
    target: int | Tensor = -1,
    head_norms: Tensor | None = None,
) -> Tensor:
    """Row ``target`` of the product over layers of A_l / beta1 + I: the sum over all monotone paths from each
    token to the target (Barbero et al., theorem 5.1). A product of a row with matrices; no path is
    enumerated.

    Args:
        attentions: of each layer, from the first, (B, H, n, n).
        heads: A is the "mean" over heads, the "max", or "ov_norm": their sum weighted by ``head_norms``.
        beta1: the theorem's constant of the first norm.
        residual: "sum", A / beta1 + I; "half", (A + I) / 2, as in attention rollout.
        target: the token that is reached, by its place in the sequence, one for all or (B,). The last one by
            default: give ``model.position`` for a model that answers elsewhere, as policies do at a state,
            and a profile's ``target`` where sequences are padded on the right.
        head_norms: norm of W_O^h W_V^h of each layer and head, (L, H).

    Returns:
        (B, n). This is a path profile, not a bound; `lipschitz_bound` gives one.
    """
    if heads not in ("mean", "max", "ov_norm"):
        raise ValueError(f'heads must be "mean", "max" or "ov_norm", got {heads!r}')
    if residual not in ("sum", "half"):
        raise ValueError(f'residual must be "sum" or "half", got {residual!r}')
    if (heads == "ov_norm") != (head_norms is not None):
        raise ValueError('head_norms, (L, H), go with heads="ov_norm", and with nothing else')
    row: Tensor | None = None
    for layer in reversed(range(len(attentions))):
        weights = attentions[layer].detach()
        if row is None:
            row = torch.zeros_like(weights[:, 0, 0])
            row[torch.arange(len(row), device=row.device), target] = 1
        if heads == "max":
            through = torch.einsum("bj,bji->bi", row, weights.amax(1))
        elif heads == "mean":
            through = torch.einsum("bj,bhji->bi", row, weights) / weights.shape[1]
        else:
            assert head_norms is not None
            through = torch.einsum("bj,bhji,h->bi", row, weights, head_norms[layer].to(weights))
        row = (through + row) / 2 if residual == "half" else through / beta1 + row
    if row is None:
        raise ValueError("there are no attentions: the model hides them")
    return row


def path_counts(n: int, layers: int, window: int | None = None) -> list[int]:
    """How many paths of ``layers`` steps, each to the same or a later token, lead from a token to the last.

    Args:
        n: tokens.
        layers: L.
        window: a step goes back over so many tokens, its own included; None for all.

    Returns:
        n exact integers; without a window binom(n - i + L - 1, L - 1) for token i of 1 to n.
    """
    if n < 1 or layers < 1:
        raise ValueError(f"n and layers must be at least 1, got {n} and {layers}")
    if window is None:
        return [math.comb(n - i + layers - 1, layers - 1) for i in range(1, n + 1)]
    ways = [0] * (n - 1) + [1]
    for _ in range(layers):
        ways = [sum(ways[i : i + window]) for i in range(n)]
    return ways


@dataclasses.dataclass(frozen=True)
class Bound(Result):
    """A bound of the spectral norm of d y_target / d v_i with frozen attention, y the state behind the final
    norm and v what goes into the first layer.

    Attributes:
        values: (B, n).
        target: index of the output's token, (B,).
        layers: L, of the model.
    """

    values: Tensor
    target: Tensor
    layers: int


@dataclasses.dataclass(frozen=True)
class BoundCheck(Result):
    """A Jacobian profile beside a path profile, over the tokens before the target that the output depends on.

    Attributes:
        rigorous: whether the path profile is a `Bound`.
        spearman: rank correlation, mean over sequences.
        log_ratio_min, log_ratio_median, log_ratio_max: of ln(path / Jacobian).
        violations: tokens whose Jacobian is larger than the path profile; only of a bound need there be none.
        tokens: how many were compared.
    """

    rigorous: bool
    spearman: float
    log_ratio_min: float
    log_ratio_median: float
    log_ratio_max: float
    violations: int
    tokens: int


def bound_check(profile: SensitivityProfile, path: Tensor | Bound) -> BoundCheck:
    """Compare the two.

    Args:
        profile: by `sensitivity_profile`, of the same sequences.
        path: (B, n) by `path_profile`, or what `lipschitz_bound` returns, in which all constants of the model
            are. That bounds the Jacobian of the last state by the first, with frozen attention alone.

    Raises:
        ValueError: other shapes; a bound with a profile of something else than it bounds.
    """
    rigorous = isinstance(path, Bound)
    if isinstance(path, Bound):
        _check_bounded(profile, path)
        path = path.values
    size, path = profile.spec if profile.spec is not None else profile.fro, path.cpu()
    if path.shape != size.shape:
        raise ValueError(
            f"profile and paths are of other sequences: {tuple(size.shape)}, {tuple(path.shape)}"
        )
    ratios, ranks = [], []
    for b, target in enumerate(profile.target.tolist()):
        jacobian, paths = size[b, : target + 1].double(), path[b, : target + 1].double()
        kept = (jacobian > 0) & (paths > 0)
        jacobian, paths = jacobian[kept], paths[kept]
        ratios.append((paths / jacobian).log())
        ranks.append(spearman(jacobian, paths))
    ratio = torch.cat(ratios)
    return BoundCheck(
        rigorous=rigorous,
        spearman=sum(ranks) / len(ranks),
        log_ratio_min=ratio.min().item(),
        log_ratio_median=ratio.median().item(),
        log_ratio_max=ratio.max().item(),
        violations=int((ratio < -ROUNDING).sum()),
        tokens=len(ratio),
    )


ROUNDING = 1e-5  # of a float32 Jacobian


def _check_bounded(profile: SensitivityProfile, bound: Bound) -> None:
    if profile.attention != "frozen" or profile.spec is None:
        raise ValueError(
            "the theorem bounds spectral norms with frozen attention: ask for sensitivity_profile(..., "
            'mode="spectral", attention="frozen")'
        )
    if (profile.output, profile.source_layer, profile.target_layer) != ("state", 0, bound.layers):
        raise ValueError(
            f"the bound is of the state of layer {bound.layers} by that of layer 0; the profile is of "
            f"output={profile.output!r} of layer {profile.target_layer} by layer {profile.source_layer}"
        )
    if not torch.equal(profile.target, bound.target.cpu()):
        raise ValueError(
            f"the bound is of tokens {bound.target.tolist()}, the profile of {profile.target.tolist()}: give "
            "both the same target"
        )


def spearman(x: Tensor, y: Tensor) -> float:
    """Rank correlation of two vectors; ties have their mean rank."""
    ranks = torch.stack([_ranks(x), _ranks(y)])
    return torch.corrcoef(ranks)[0, 1].item()


def _ranks(x: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]
