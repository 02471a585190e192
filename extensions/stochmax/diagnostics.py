"""How far the stochastic maximum falls short of the maximum, measured on a probe batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .maximise import QFunction, exact_maximise, maximise
from .sources import Query, draw_uniform

if TYPE_CHECKING:
    from .candidates import SampledMaximum

#: values that the exact reference may compute; above, a large sample stands in for all n
EXACT_VALUES = 1 << 20
LARGE_SAMPLE = 4096


class Shortfall(NamedTuple):
    """What a probe batch shows; 0-dim tensors.

    Attributes:
        omega: mean of stoch max / max over the states whose max is positive (nan if none): 1 is no loss.
        beta: mean of max - stoch max, >= 0.
        memory_hit_rate: share of the stochastic maxima that came from M.
        value: mean of |max|, the scale against which beta is to be judged.
        exact: whether the maximum is over all n, or all that are legal; else it is over a large sample of
            them with the candidates and ``known``.
    """

    omega: Tensor
    beta: Tensor
    memory_hit_rate: Tensor
    value: Tensor
    exact: bool

    def doubt(self, gamma: float) -> str | None:
        """What is to be said if the values may be biased by more than their scale (at least 1), else None."""
        beta, value = self.beta.item(), self.value.item()
        bias = beta * gamma / (1 - gamma) if gamma < 1 else float("inf")
        if bias <= max(value, 1.0):
            return None
        return (
            f"The stochastic maximum falls short of the maximum by beta={beta:.3g} on average, which can "
            f"bias values by up to beta*gamma/(1-gamma)={bias:.3g} where they are about {value:.3g}. "
            "More candidates or a memory (ReplayActions, CachedArgmax) or n_steps > 1 reduce it."
        )


@torch.no_grad()
def measure_shortfall(
    stoch: SampledMaximum, q: QFunction, states: Any, query: Query, known: Tensor | None = None
) -> Shortfall:
    """omega and beta of Fourati et al. (section 5) on ``query.batch`` states.

    Args:
        stoch: the stochastic maximum to examine.
        q, states, query: as for calling ``stoch``.
        known: ids worth having in the large sample, e.g. rows ever trained: (U,); at most 4096 of them are
            used.
    """
    sets, valid = stoch.propose(query)
    sampled = stoch.best_of(q, states, query, sets, valid)
    legal = None if stoch.legal is None else stoch.legal.all(query)  # (B, L) or (L,)
    count = stoch.codec.n if legal is None else legal.shape[-1]
    exact = count * query.batch <= EXACT_VALUES
    if not exact:
        more, more_valid = _large_sample(stoch, query, known)
        top = torch.maximum(maximise(q, states, *more, valid=more_valid).value, sampled.value)
    elif legal is None:
        top = exact_maximise(q, states, count, query.device).value
    else:
        top = maximise(q, states, legal).value
    positive = top > 0
    return Shortfall(
        omega=(sampled.value[positive] / top[positive]).mean(),
        beta=(top - sampled.value).mean(),
        memory_hit_rate=stoch.from_memory(sets, sampled).float().mean(),
        value=top.abs().mean(),
        exact=exact,
    )


def _large_sample(
    stoch: SampledMaximum, query: Query, known: Tensor | None
) -> tuple[list[Tensor], Tensor | None]:
    """Ids drawn uniformly and of ``known``, and which of them are legal (B, C) where not all are."""
    n, legal = stoch.codec.n, stoch.legal
    if legal is None:
        sets = [draw_uniform(n, min(LARGE_SAMPLE, n), None, query.device)]  # (C,)
    else:
        sets = [legal.draw(query, LARGE_SAMPLE)]  # (B, C)
    if known is not None and len(known):
        sets.append(known[torch.randint(len(known), (min(LARGE_SAMPLE, len(known)),), device=known.device)])
    if legal is None:
        return sets, None
    sets = [ids.expand(query.batch, -1) for ids in sets]
    return sets, legal.contains(query, torch.cat(sets, 1))
