"""What can be done about a prompt: remedies that change how a sequence is written, and not what it is."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from string import ascii_lowercase

from ..grouping import group_ends
from ..tasks import Item, Question
from .payload import element_spans, insert_behind, refuse_inside


class TextRemedy:
    """Maps an item to one with another prompt and the same payload, lead and answer."""

    @property
    def name(self) -> str:
        """By which results are found."""
        raise NotImplementedError

    def __call__(self, item: Item) -> Question:
        raise NotImplementedError


class Separators(TextRemedy):
    """A text behind some of a payload's elements, never behind the last.

    A payload that holds the text, or an element that the text holds, is refused with a ValueError.
    """

    sep: str
    every: int

    def ends(self, n: int) -> list[int]:
        """Behind how many of n elements it comes, ascending."""
        raise NotImplementedError

    def __call__(self, item: Item) -> Question:
        refuse_inside(self.sep, item.prompt[slice(*item.payload_span)], item.payload)
        return _with(item, dict.fromkeys(self.ends(len(item.payload)), self.sep))


@dataclass(frozen=True)
class Dilute(Separators):
    """A separator after each ``every`` elements (Barbero et al., section 6: commas every third digit).

    Args:
        every: elements in a group.
        sep: what is put directly behind an element.
        side: from where groups are counted: "left", or "right" as in thousands.
    """

    every: int = 3
    sep: str = ","
    side: str = "left"

    def __post_init__(self) -> None:
        group_ends(0, self.every, self.side)  # refuses what is no grouping

    @property
    def name(self) -> str:
        """Such as ``dilute(3, ',')``."""
        side = ", right" if self.side == "right" else ""
        return f"dilute({self.every}, {self.sep.strip()!r}{side})"

    def ends(self, n: int) -> list[int]:
        """The ends of full groups."""
        return group_ends(n, self.every, self.side)


@dataclass(frozen=True)
class Scattered(Separators):
    """As many separators as `Dilute` puts, each at a random place in its group: need they be regular?

    It is no placebo: runs of one token are nearly as short. The places hang on the seed alone, so a longer
    sequence begins as a shorter one does, and pairs of the two differ at their ends only.

    Args:
        every: elements in a group.
        sep: what is put directly behind an element.
        seed: of the places.
    """

    every: int = 3
    sep: str = ","
    seed: int = 0

    def __post_init__(self) -> None:
        group_ends(0, self.every)

    @property
    def name(self) -> str:
        """Such as ``scattered(3, ',')``."""
        return f"scattered({self.every}, {self.sep.strip()!r})"

    def ends(self, n: int) -> list[int]:
        """One random place for each full group."""
        draw = random.Random(self.seed)
        return [end - draw.randrange(self.every) for end in group_ends(n, self.every)]


@dataclass(frozen=True)
class Filler(TextRemedy):
    """The control of a budget: as many separators as `Dilute` puts, all in front of a sequence that stays
    whole.

    They are as many characters; where a tokenizer merges them they are fewer tokens.

    Args:
        every: elements for each separator.
        sep: what is put in front.
    """

    every: int = 3
    sep: str = ","

    def __post_init__(self) -> None:
        group_ends(0, self.every)

    @property
    def name(self) -> str:
        """Such as ``filler(3, ',')``."""
        return f"filler({self.every}, {self.sep.strip()!r})"

    def __call__(self, item: Item) -> Question:
        start, stop = item.payload_span
        refuse_inside(self.sep, item.prompt[start:stop], item.payload)
        piece = self.sep * len(group_ends(len(item.payload), self.every))
        prompt = item.prompt[:start] + piece + item.prompt[start:]
        return Question.of(item, prompt=prompt, payload_span=(start + len(piece), stop + len(piece)))


@dataclass(frozen=True)
class Alternate(TextRemedy):
    """Another symbol between all elements, written as they are: "1 1 1" becomes "1 - 1 - 1".

    Args:
        symbol: none of the payload's.
    """

    symbol: str = "-"

    @property
    def name(self) -> str:
        """Such as ``alternate('-')``."""
        return f"alternate({self.symbol!r})"

    def __call__(self, item: Item) -> Question:
        refuse_inside(self.symbol, item.prompt[slice(*item.payload_span)], item.payload)
        spans = element_spans(item.prompt, item.payload_span, item.payload)
        gaps = [item.prompt[stop:start] for (_, stop), (start, _) in pairwise(spans)]
        return _with(item, {behind: gap + self.symbol for behind, gap in enumerate(gaps, 1)})


@dataclass(frozen=True)
class IndexMarkers(TextRemedy):
    """Letters that count elements: "1 1 1" becomes "1a 1b 1c"; two each if there are more than 26.

    A payload with small letters is refused with a ValueError.

    Args:
        space: what is between an element and its marker.
    """

    space: str = ""

    @property
    def name(self) -> str:
        """``index_markers``"""
        return "index_markers"

    def __call__(self, item: Item) -> Question:
        if taken := sorted(set("".join(item.payload)) & set(ascii_lowercase)):
            raise ValueError(
                f"markers are small letters, and the payload holds some itself: {', '.join(taken)}; mark "
                "sequences of digits or capitals"
            )
        n, letters = len(item.payload), 1
        while 26**letters < n:
            letters += 1
        markers = ("".join(marker) for marker in product(ascii_lowercase, repeat=letters))
        return _with(
            item, {i: self.space + marker for i, marker in zip(range(1, n + 1), markers, strict=False)}
        )


@dataclass(frozen=True)
class BosPrefix(TextRemedy):
    """A token of beginning in front, where the tokenizer sets none: without any, constant runs of all lengths
    have one and the same state.

    Args:
        bos: its text, such as ``tokenizer.bos_token``.
    """

    bos: str = "<s>"

    @property
    def name(self) -> str:
        """``bos_prefix``"""
        return "bos_prefix"

    def __call__(self, item: Item) -> Question:
        return _behind(item, self.bos)


@dataclass(frozen=True)
class Hint(TextRemedy):
    """A hint in front of the prompt (Barbero et al., section 3).

    Args:
        text: of the hint, with the white space behind it.
    """

    text: str = "Look carefully: one element may differ from all the others. "

    @property
    def name(self) -> str:
        """``hint``"""
        return "hint"

    def __call__(self, item: Item) -> Question:
        return _behind(item, self.text)


@dataclass(frozen=True)
class RepeatQuestion(TextRemedy):
    """The question once more behind the sequence.

    Args:
        question: its text; if None, all that comes before the sequence. Where that is nothing, the question
            is behind the sequence already, and a ValueError says so.
    """

    question: str | None = None

    @property
    def name(self) -> str:
        """``repeat_question``"""
        return "repeat_question"

    def __call__(self, item: Item) -> Question:
        question = item.prompt[: item.payload_span[0]] if self.question is None else self.question
        if not question.strip():
            raise ValueError(
                "nothing comes before the sequence that could be repeated behind it: "
                "give RepeatQuestion(question=...)"
            )
        stop = item.payload_span[1]
        return Question.of(item, prompt=f"{item.prompt[:stop]} {question.strip()}{item.prompt[stop:]}")


def with_last_repeated(item: Item, more: int) -> Question:
    """An item whose last element comes ``more`` times more: the second of a pair of theorem 4.2.

    The answer is left as it is, since only states of such a pair are compared.
    """
    spans = element_spans(item.prompt, item.payload_span, item.payload)
    gap = item.prompt[spans[-2][1] : spans[-1][0]] if len(spans) > 1 else ""
    changed = _with(item, {len(spans): (gap + item.payload[-1]) * more})
    payload = (*item.payload, *[item.payload[-1]] * more)
    return Question.of(changed, payload=payload, length=item.length + more)


def _with(item: Item, pieces: Mapping[int, str]) -> Question:
    """The item with pieces behind elements."""
    new = insert_behind(item.prompt, item.payload_span, item.payload, pieces)
    return Question.of(item, prompt=new.text, payload_span=new.span)


def _behind(item: Item, text: str) -> Question:
    """The item behind a text."""
    start, stop = item.payload_span
    return Question.of(item, prompt=text + item.prompt, payload_span=(start + len(text), stop + len(text)))
