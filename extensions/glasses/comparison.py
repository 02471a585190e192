"""What remedies did to accuracy and to the gap, and what of it is theirs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .results import Result
from .statistics import LEAST_RATIOS, CriticalLength, mean_ratio

PLAIN = "plain"


@dataclasses.dataclass(frozen=True)
class Gain(Result):
    """A ratio of two n50, at least ``low`` and at most ``high``; these are equal where both n50 were seen."""

    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"x{self.low:.3g}"
        if self.low == 0:
            return "unknown" if self.high == math.inf else f"at most x{self.high:.3g}"
        return f"at least x{self.low:.3g}" + ("" if self.high == math.inf else f", at most x{self.high:.3g}")


def gains(
    found: CriticalLength, plain: CriticalLength, lengths: Sequence[int], tokens: Tensor, plain_tokens: Tensor
) -> tuple[Gain, Gain]:
    """How many times longer sequences are answered with a remedy, in elements and in tokens of the prompt.

    Args:
        found, plain: n50 with the remedy and without.
        lengths: N of them.
        tokens, plain_tokens: of prompts, (N,).
    """
    ends, plain_ends = _ends(found, lengths), _ends(plain, lengths)
    in_tokens = [_tokens_at(end, lengths, tokens) for end in ends]
    plain_in_tokens = [_tokens_at(end, lengths, plain_tokens) for end in plain_ends]
    return _ratio(ends, plain_ends), _ratio(in_tokens, plain_in_tokens)


def _ends(found: CriticalLength, lengths: Sequence[int]) -> list[float]:
    """Between which lengths n50 is."""
    if found.censored == "right":
        return [float(lengths[-1]), math.inf]
    if found.censored == "left":
        return [0.0, float(lengths[0])]
    return [found.length, found.length]


def _tokens_at(length: float, lengths: Sequence[int], tokens: Tensor) -> float:
    """Linear between the lengths; nothing is said of what is beyond them."""
    if length in (0, math.inf):
        return length
    after = next(i for i, x in enumerate(lengths) if x >= length)
    if lengths[after] == length:
        return tokens[after].item()
    part = (length - lengths[after - 1]) / (lengths[after] - lengths[after - 1])
    return torch.lerp(tokens[after - 1], tokens[after], part).item()


def _ratio(ends: Sequence[float], plain: Sequence[float]) -> Gain:
    low = 0.0 if plain[1] == math.inf else ends[0] / plain[1]
    return Gain(low, math.inf if plain[0] == 0 else ends[1] / plain[0])


@dataclasses.dataclass(frozen=True)
class Arm(Result):
    """One remedy on one task at N lengths. Dictionaries are by dtype unless they say otherwise.

    Attributes:
        task, remedy: names; the remedy is "plain" without one.
        every: elements in a group, of separators and their controls; None of others.
        controls: names of the arms that control this one: separators from the right, as many at random
            places, as many in front of the sequence.
        trials: distinct items at each length, (N,).
        tokens: of prompt and lead, mean over items, (N,).
        accuracy: share of right answers, (N,).
        low, high: its 95% interval (Wilson), (N,).
        margin: mean over items, in logits, (N,).
        right: whether each item is answered right, by length.
        said: what greedy decoding says to each item, by length.
        n50: from which length on accuracy is less than half above chance.
        n50_within: the same of the lower and of the upper ends of accuracy's intervals; ``inf`` if of none
            tested.
        gain, token_gain: n50 over that of "plain", in elements and in tokens.
        gap: by how many elements more the second sequence of a pair has, mean in float32, (N,); 0 where it is
            no more than rounding there, NaN where it was not measured.
    """

    task: str
    remedy: str
    every: int | None
    controls: tuple[str, ...]
    trials: tuple[int, ...]
    tokens: Tensor
    accuracy: dict[str, Tensor]
    low: dict[str, Tensor]
    high: dict[str, Tensor]
    margin: dict[str, Tensor]
    right: dict[str, tuple[tuple[bool, ...], ...]]
    said: dict[str, tuple[tuple[str, ...], ...]]
    n50: dict[str, CriticalLength]
    n50_within: dict[str, tuple[float, ...]]
    gain: dict[str, Gain]
    token_gain: dict[str, Gain]
    gap: dict[int, Tensor]


@dataclasses.dataclass(frozen=True)
class Comparison(Result):
    """Remedies side by side.

    Attributes:
        lengths: N of them, in elements.
        pairs: how many items the gaps are means over, at most.
        norm: of the gap, in the last layer behind the final norm, at the token before the answer.
        chance: accuracy of a model that knows nothing, by task.
        arms: by task and remedy, as "copy_last/plain".
        faults: what the tokenizer makes of a task's separators, and of its runs, that undoes remedies; in
            words, by task.
    """

    lengths: tuple[int, ...]
    pairs: int
    norm: str
    chance: dict[str, float]
    arms: dict[str, Arm]
    faults: dict[str, tuple[str, ...]]

    def arm(self, task: str, remedy: str = PLAIN) -> Arm:
        """One of them.

        Raises:
            KeyError: there is none of these names.
        """
        key = f"{task}/{remedy}"
        if key not in self.arms:
            raise KeyError(f"no arm {key!r}; there are {', '.join(self.arms)}")
        return self.arms[key]

    def verdicts(self) -> list[str]:
        """Lines with numbers: n50 of each arm and dtype, and its gaps, those of separators beside
        phase-matched pairs."""
        lines = []
        for task in self.chance:
            arms = [arm for arm in self.arms.values() if arm.task == task]
            lines += [f"{task}: {fault}" for fault in self.faults[task]]
            never = all(n50.censored == "left" for arm in arms for n50 in arm.n50.values())
            if never:
                best = max(x[0].item() for arm in arms for x in arm.accuracy.values())
                lines.append(
                    f"{task}: not answered at n = {self.lengths[0]} already, with any remedy or none "
                    f"(accuracy at most {best:.2g}): nothing can be said of what length does to the answers"
                )
            for arm in arms:
                lines += [] if never else [self._of_accuracy(arm, dtype) for dtype in arm.n50]
                lines += [] if arm.remedy == PLAIN else self._of_gap(arm)
        return lines

    def _of_accuracy(self, arm: Arm, dtype: str) -> str:
        n50, half = arm.n50[dtype], (1 + self.chance[arm.task]) / 2
        said = {
            "no": f"accuracy is under {half:.3g} from n = {n50.length:.3g} on",
            "right": f"accuracy is at least {half:.3g} at the longest n, {self.lengths[-1]}",
            "left": f"accuracy is under {half:.3g} from the shortest n on, {self.lengths[0]}",
        }[n50.censored]
        line = f"{arm.task}, {arm.remedy}, {dtype}: {said}{self._within(*arm.n50_within[dtype])}"
        if arm.remedy == PLAIN:
            return line
        if n50.censored != "no" and n50.censored == self.arm(arm.task).n50[dtype].censored:
            return f"{line}; so it is without it"
        line += f"; n50 {arm.gain[dtype]} in elements, {arm.token_gain[dtype]} in tokens"
        return "; ".join([line, *self._of_controls(arm, dtype)])

    def _within(self, low: float, high: float) -> str:
        """Where n50 may be by the intervals of accuracy; nothing where they agree that it is not among n."""
        first, last = self.lengths[0], self.lengths[-1]
        if low == math.inf or high <= first:
            return ""
        if low <= first and high == math.inf:
            return " (by its intervals, at any n)"
        if low <= first:
            return f" (by its intervals, up to n = {high:.3g})"
        upto = f"beyond {last}" if high == math.inf else f"{high:.3g}"
        return f" (by its intervals, n = {low:.3g} to {upto})"

    def _of_controls(self, arm: Arm, dtype: str) -> list[str]:
        """What each of them gains, and what that says where the arm itself gains."""
        lines = []
        helps = arm.gain[dtype].low > 1
        for name in arm.controls:
            gain = self.arm(arm.task, name).gain[dtype]
            meaning = ""
            if helps and name.endswith("right)"):
                meaning = (
                    ": not their phase" if gain.low > 1 else ": perhaps their phase" if gain.high <= 1 else ""
                )
            elif helps and name.startswith("filler"):
                meaning = (
                    ": more tokens alone help"
                    if gain.low > 1
                    else ": not more tokens"
                    if gain.high <= 1
                    else ""
                )
            lines.append(f"{name} {gain}{meaning}")
        return lines

    def _of_gap(self, arm: Arm) -> list[str]:
        plain, norm = self.arm(arm.task), {"l1": "L1", "l2": "L2", "linf": "L-infinity"}[self.norm]
        start = f"{arm.task}, {arm.remedy}: {norm} gap of (n, n+1) "
        measured = ~(plain.gap[1].isnan() | arm.gap[1].isnan())
        if not measured.any():
            return []
        if not plain.gap[1][measured].any():
            with_it = "too" if not arm.gap[1][measured].any() else f"{arm.gap[1][measured].mean():.3g}"
            return [f"{start}is no more than rounding without it, and with it {with_it}"]
        next_one = mean_ratio(arm.gap[1] / plain.gap[1])
        if not next_one.count:
            return [start + "is no more than rounding with it"]
        lengths = "one length" if next_one.count == 1 else f"{next_one.count} lengths"
        if arm.every is None:
            return [f"{start}{next_one}, mean over {lengths}"]
        matched = mean_ratio(arm.gap[arm.every] / plain.gap[arm.every])
        meaning = {
            (True, True): "the gain is on both",
            (True, False): "the gain is local",
            (False, True): "the gain is on the phase-matched pair alone",
            (False, False): "no gain is seen",
        }[next_one.low > 1, matched.low > 1]
        if min(next_one.count, matched.count) < LEAST_RATIOS:
            meaning = f"to tell a gain takes {LEAST_RATIOS} lengths"
        return [
            f"{start}{next_one}, of the phase-matched pair (n, n+{arm.every}) {matched}, mean over "
            f"{lengths}: {meaning}"
        ]
