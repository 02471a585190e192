"""The report card as a picture of four panels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .flips import MarginBin

if TYPE_CHECKING:
    from ...evaluation import Estimate
    from .card import ReportCard

BINS = 32  # of positions, at most
POLICY, OTHER, GREY = "C0", "C1", "0.75"


def draw(card: ReportCard, path: Path) -> None:
    """
    Draw a report card.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"The picture needs matplotlib, which is not installed: pip install matplotlib. "
            f"The figures are in {path.with_suffix('.json')}."
        ) from error
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    panels = figure.subplots(2, 2)
    _divergence(panels[0, 0], card)
    _margins(panels[0, 1], card)
    _causes(panels[1, 0], card)
    _quality(panels[1, 1], card)
    for ax in panels.flat:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    replies, flips = card.replies, card.flips
    figure.suptitle(
        f"{replies.pairs:,} prompts, {_percent(replies.identical)} of the replies identical; of the "
        f"teacher's tokens {_percent(flips.rate)} flip,\n"
        f"with KL(teacher || policy) = {_number(flips.forward_kl_per_token.value)} nats each"
    )
    figure.savefig(path, dpi=120)


def _divergence(ax: Any, card: ReportCard) -> None:
    """At which token replies part, and how many are still together."""
    counts = card.replies.divergence_histogram
    width = math.ceil(len(counts) / BINS)
    starts = range(0, len(counts), width)
    heights = [sum(counts[start : start + width]) for start in starts]
    ax.bar(starts, heights, width=0.9 * width, align="edge", color=POLICY)
    ax.set_title("where replies part")
    ax.set_xlabel("first token that differs, from 0" + (f" (bins of {width})" if width > 1 else ""))
    ax.set_ylabel("prompts")
    shares = card.replies.prefix_agreement
    curve = ax.twinx()
    curve.plot(list(shares), [share.value for share in shares.values()], color=OTHER, marker=".")
    curve.set_ylim(0, 1.02)
    curve.set_ylabel("share whose first k tokens agree", color=OTHER)


def _margins(ax: Any, card: ReportCard) -> None:
    """Flip rate by the teacher's margin, over the share of tokens that have it."""
    bins = card.flips.by_margin
    rates = [0.0 if math.isnan(one.rate.value) else one.rate.value for one in bins]
    errors = [0.0 if math.isnan(one.rate.standard_error) else one.rate.standard_error for one in bins]
    tokens = max(card.flips.tokens, 1)
    places = range(len(bins))
    ax.bar(places, [one.tokens / tokens for one in bins], color=GREY, label="share of tokens")
    ax.bar(places, rates, width=0.45, yerr=errors, capsize=3, color=POLICY, label="flip rate")
    ax.set_xticks(places, [_margin(one) for one in bins], fontsize="small")
    ax.set_title("flips by the teacher's margin")
    ax.set_xlabel("gap of its two largest logits, nats")
    ax.legend(fontsize="small")


def _causes(ax: Any, card: ReportCard) -> None:
    """What flips come from, or without an attribution how often the teacher's token is near the top."""
    found = card.attribution
    if found is None:
        shares = card.flips.top_k_agreement
        labels, values = [f"top {k}" for k in shares], list(shares.values())
        ax.set_title("the teacher's token among the policy's k likeliest")
    else:
        labels = ["own token", "KV cache", "either", "only both\ntogether"]
        values = [found.own_token, found.cache, found.either, found.together]
        ax.set_title(f"what makes {found.flips:,} flips of {found.prompts:,} replies")
    heights = [0.0 if math.isnan(one.value) else one.value for one in values]
    errors = [0.0 if math.isnan(one.standard_error) else one.standard_error for one in values]
    ax.bar(labels, heights, yerr=errors, capsize=3, color=POLICY)
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("share")


def _quality(ax: Any, card: ReportCard) -> None:
    """Conversation beside perplexity; without a judge, how long replies are."""
    verdict, title = card.verdict, "policy against teacher"
    if verdict is not None:
        ax.bar(["win", "tie", "lose"], [verdict.win, verdict.tie, verdict.lose], color=["C2", GREY, "C3"])
        ax.set_ylim(0, 1.05)
        ax.set_ylabel("share of prompts")
        title += f": win rate {verdict.win_rate:.3f} [{verdict.low:.3f}, {verdict.high:.3f}]"
    else:
        lengths = [card.replies.teacher_length, card.replies.policy_length]
        errors = [0.0 if math.isnan(one.standard_error) else one.standard_error for one in lengths]
        ax.bar(["teacher", "policy"], [one.value for one in lengths], yerr=errors, capsize=3, color=POLICY)
        ax.set_ylabel("tokens")
        title = "length of replies"
    if card.perplexity is not None:
        title += (
            f"\nperplexity {_number(card.perplexity.policy.value)}, the teacher's "
            f"{_number(card.perplexity.teacher.value)}"
        )
    ax.set_title(title)


def _margin(one: MarginBin) -> str:
    return f"{one.low:g}+" if math.isinf(one.high) else f"{one.low:g}\u2013{one.high:g}"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}%"


def _number(value: float) -> str:
    return f"{value:.4g}"
