"""What the paper says that these runs can speak to, and what they say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from extensions.glasses.statistics import critical_length

from . import glasses_trained_plan as plan
from .action_scaling_page import table
from .glasses_decoder import POSITIONS
from .glasses_questions import TASKS
from .glasses_trained_plan import NAMES
from .glasses_trained_rows import Case, Row, at, cases, curves, gain, n50s, ratio_of_means

Interval = tuple[float, float, float]
COPIES = ("copy_first", "copy_last")
FAR = 128  # digits, for gaps: four times the longest of training


def verdict(found: Interval, above: bool) -> str:
    """Whether a ratio is above 1 (or below, if not ``above``), as far as its interval says."""
    _, low, high = found
    if low > 1 or high < 1:
        return "agrees" if (low > 1) == above else "**disagrees**"
    return "undecided"


def shown(found: Interval) -> str:
    """A ratio and its interval."""
    point, low, high = (f"{x:.2f}" if x >= 0.01 else f"{x:.1g}" for x in found)
    return f"x {point} [{low}, {high}]"


def claims(rows: list[Row]) -> str:
    """A row a claim."""
    makers = (
        _copying_ends,
        _first_before_last,
        _positions,
        _precision,
        _separators,
        _collapse,
        _adaptive,
        _window,
    )
    lines = [list(line) for make in makers for line in make(rows)]
    return table(["the paper", "here", "figure", "verdict"], lines)


def _ran(rows: list[Row], *wanted: Case) -> bool:
    return set(wanted) <= set(cases(rows))


def _copying_ends(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """A model that copies without error at short lengths says 1 at long ones."""
    for task in COPIES:
        case = (task, "rope", "plain")
        if not _ran(rows, case):
            continue
        n50, longest = n50s(rows, case), plan.LENGTHS[task][-1]
        ended = int(np.isfinite(n50).sum())
        both, zeros = (at(rows, case, f"{margin}_float32", longest) for margin in ("margin", "margin_of_0"))
        always_one = int(((zeros < 0) & (2 * both - zeros > 0)).sum())
        yield (
            "copying fails from some length on, and then the answer is 1",
            f"{task}, RoPE, no remedy",
            f"{ended} of {len(n50)} seeds fail by n = {longest:,}, where {always_one} always say 1",
            "agrees" if ended == always_one == len(n50) else "agrees in part" if ended else "**disagrees**",
        )


def _first_before_last(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for positions in POSITIONS:
        first, last = ((task, positions, "plain") for task in COPIES)
        if _ran(rows, first, last):
            found = gain(rows, first, last)
            yield (
                "the first digit is copied further than the last",
                f"n50 of copy_first over copy_last, {NAMES[positions]}, no remedy",
                shown(found),
                verdict(found, above=True),
            )


def _positions(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """The paper finds its synthetic gaps to collapse at about the same length whatever the positions."""
    for task in TASKS:
        for positions in ("nope", "learned"):
            case, rope = (task, positions, "plain"), (task, "rope", "plain")
            if _ran(rows, case, rope):
                found = gain(rows, case, rope)
                same = verdict(found, above=True)
                yield (
                    "positions make little difference (to its gaps)",
                    f"n50 of {task}, {NAMES[positions]} over RoPE",
                    shown(found),
                    "no difference seen" if same == "undecided" else "**disagrees**",
                )


def _precision(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """Over all arms, since the difference is none or nearly."""
    for task in TASKS:
        ran = [case for case in cases(rows) if case[0] == task]
        if not ran:
            continue
        right = [[curves(rows, case, f"right_{dtype}")[1] for case in ran] for dtype in plan.DTYPES]
        full, low = (np.concatenate([x.ravel() for x in found]) for found in right)
        differ = int((full != low).sum())
        yield (
            "lower precision fails earlier",
            f"{task}, all arms: share of right answers, bfloat16 less float32",
            f"{low.mean() - full.mean():+.4f}; it differs in {differ:,} of {len(full):,} tests",
            "**no effect**" if abs(low.mean() - full.mean()) < 0.005 else "see n50",
        )


def _separators(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for task in TASKS:
        plain = (task, "rope", "plain")
        for arm in ("left", "right", "filler"):
            case = (task, "rope", arm)
            if _ran(rows, case, plain):
                digits, tokens = gain(rows, case, plain), gain(rows, case, plain, tokens=True)
                yield (
                    "separators help" if arm != "filler" else "control: as many tokens without grouping",
                    f"n50 of {task}, RoPE, {arm}, in digits; in tokens",
                    f"{shown(digits)}; {shown(tokens)}",
                    verdict(digits, above=True) if arm != "filler" else "",
                )


def _collapse(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """n and n + 1 ones, against the rounding of one state."""
    for task in TASKS:
        for positions in POSITIONS:
            case = (task, positions, "plain")
            if _ran(rows, case):
                lengths, snr = curves(rows, case, "snr_next")
                median = np.median(snr, 0)
                found = critical_length(lengths, (median < 1).tolist())
                never = np.isinf(found.length)
                until = "never below 1" if never else f"below 1 from n = {found.length:,.0f}"
                yield (
                    "n and n + 1 ones come nearer than bfloat16 can tell",
                    f"gap over rounding, {task}, {NAMES[positions]}, no remedy",
                    f"{median[0]:.3g} at n = {lengths[0]}, {median[-1]:.3g} at n = {lengths[-1]:,}; {until}",
                    "**disagrees**" if never else "agrees",
                )


def separator_gaps(rows: list[Row]) -> str:
    """The confound: grouped from the left, n and n + 1 differ in the last group, and from the right in the
    first one; n and n + 3 have both alike."""
    pairs = (("left", "next"), ("left", "matched"), ("right", "next"), ("right", "matched"))
    lines = []
    for task in TASKS:
        for positions in POSITIONS:
            plain = (task, positions, "plain")
            cells = []
            for arm, kind in pairs:
                both = [(task, positions, arm), plain]
                found = None
                if _ran(rows, *both):
                    found = ratio_of_means(*(at(rows, case, f"gap_{kind}", FAR) for case in both))
                cells.append("not run yet" if found is None else emphasised(found))
            lines.append([task, NAMES[positions], *cells])
    head = [f"{arm}, n and n + {1 if kind == 'next' else 3}" for arm, kind in pairs]
    return table(["task", "positions", *head], lines)


def emphasised(found: Interval) -> str:
    """A ratio, in bold if its interval is on one side of 1."""
    return f"**{shown(found)}**" if found[1] > 1 or found[2] < 1 else shown(found)


def _adaptive(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for task in TASKS:
        for positions in POSITIONS:
            case, plain = (task, positions, "adaptive"), (task, positions, "plain")
            if _ran(rows, case, plain):
                found = gain(rows, case, plain)
                yield (
                    "adaptive temperature helps (its own paper)",
                    f"n50 of {task}, {NAMES[positions]}",
                    shown(found),
                    verdict(found, above=True),
                )


def _window(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    for task in COPIES:
        case, plain = (task, "rope", "window"), (task, "rope", "plain")
        if _ran(rows, case, plain):
            found = gain(rows, case, plain)
            yield (
                "a window takes the cause away"
                if task == "copy_last"
                else "at a price: what is out of sight",
                f"n50 of {task}, RoPE",
                shown(found),
                verdict(found, above=task == "copy_last"),
            )
