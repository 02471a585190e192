"""The elements of a sequence inside a text, and texts with more between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def element_spans(text: str, span: tuple[int, int], elements: Sequence[str]) -> list[tuple[int, int]]:
    """Characters of each element, from and up to.

    Args:
        text: holds the sequence.
        span: where, in characters.
        elements: in order; between them may be anything.

    Raises:
        ValueError: one is empty or not found.
    """
    found: list[tuple[int, int]] = []
    start = span[0]
    for element in elements:
        place = text.find(element, start, span[1]) if element else -1
        if place < 0:
            raise ValueError(
                f"element {len(found)} of the payload, {element!r}, is not in the rest of the span, "
                f"{text[start : span[1]]!r}: payload and payload_span must be those of the prompt"
            )
        start = place + len(element)
        found.append((place, start))
    return found


@dataclass(frozen=True)
class Inserted:
    """A text with pieces inserted.

    Attributes:
        text: the new one.
        span: of the sequence in it, with all that was inserted between its elements.
        pieces: characters of each piece in it, from and up to.
    """

    text: str
    span: tuple[int, int]
    pieces: tuple[tuple[int, int], ...]

    def inverse(self) -> str:
        """The text without the pieces."""
        text = self.text
        for start, stop in reversed(self.pieces):
            text = text[:start] + text[stop:]
        return text


def insert_behind(
    text: str, span: tuple[int, int], elements: Sequence[str], pieces: Mapping[int, str]
) -> Inserted:
    """Put pieces of text behind elements.

    Args:
        text, span, elements: as in `element_spans`.
        pieces: by how many elements they come behind, from 1.
    """
    ends = [stop for _, stop in element_spans(text, span, elements)]
    new, done, places = "", 0, []
    for behind in sorted(pieces):
        new += text[done : ends[behind - 1]]
        done = ends[behind - 1]
        places.append((len(new), len(new) + len(pieces[behind])))
        new += pieces[behind]
    more = sum(map(len, pieces.values()))
    return Inserted(new + text[done:], (span[0], span[1] + more), tuple(places))


def default_elements(sequence: str) -> list[str]:
    """Words where there is white space between them, else characters."""
    words = sequence.split()
    return words if len(words) > 1 else list(sequence.strip())


def refuse_inside(piece: str, sequence: str, elements: Sequence[str]) -> None:
    """Refuse a piece that could not be told from the sequence.

    Raises:
        ValueError: it is empty, holds an element, or is in the sequence, but for white space around it.
    """
    if not piece:
        raise ValueError("the separator is empty")
    if held := next((element for element in elements if element in piece), None):
        raise ValueError(f"the separator {piece!r} holds an element of the payload, {held!r}: choose another")
    if (piece.strip() or piece) in sequence:
        raise ValueError(
            f"the payload holds {piece!r} itself, so they could not be told apart: choose another separator"
        )
