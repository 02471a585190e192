"""What a task asks, of which lengths, and how it is put."""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import Formatter

COPYING = ("copy_first", "copy_last", "copy_nth")
COUNTING = ("count_ones", "count_bernoulli", "count_word", "sum_ones", "parity")
KINDS = (*COPYING, *COUNTING, "kv_recall")
NUMERIC = ("count_ones", "count_bernoulli", "count_word", "sum_ones")  # kinds whose answer is a number

PROMPT_ORDERS = ("question_first", "sequence_first")
PROMPT_STYLES = ("words", "terse")
COTS = ("none", "zero", "few")
TEMPLATE_FIELDS = ("payload", "question", "hint", "cot", "demand", "examples", "query")


def require_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """A ValueError that lists the choices, unless ``value`` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class SeparatorConfig:
    """A mark after every few elements, so that no run of equal tokens gets long.

    Args:
        every: elements between two marks, at least 1.
        text: the mark. No letter, digit or space, none of ``+ : ? =``: those have meanings of their own.
        side: ``"left"`` counts off from the start of the sequence, so that the number of elements after the
            last mark depends on the length; ``"right"`` from its end, as in thousands, so that it does not.

    Raises:
        ValueError: one of these is not so.
    """

    every: int = 3
    text: str = ","
    side: str = "left"

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be an int of at least 1, got {self.every!r}")
        require_one_of("side", self.side, ("left", "right"))
        if not self.text or any(c.isalnum() or c.isspace() or c in "+:?=" for c in self.text):
            raise ValueError(
                f"text must be a mark such as ',' or '|', without letters, digits, spaces or + : ? =, "
                f"got {self.text!r}"
            )


@dataclass(frozen=True)
class TaskConfig:
    """A task: what is asked of sequences of which lengths, and how it is put.

    Args:
        kind: one of `KINDS`. ``copy_first``, ``copy_last``, ``copy_nth``: one element of a run of equal ones;
            it alone may differ from them. ``count_ones``: the length of a run. ``count_bernoulli``: how often
            the last symbol of the alphabet occurs. ``count_word``: how often "car" does, among other words.
            ``sum_ones``: 1+1+...+1. ``parity``: whether that symbol occurs an even (0) or odd (1) number of
            times. ``kv_recall``: the value of one of many keys.
        lengths: elements of a sequence: a tuple ``(lo, hi)`` for all from ``lo`` to ``hi``, both included,
            or a list of lengths; each at least 1.
        p: the chance in [0, 1] that an element is one of those counted, in ``count_bernoulli``,
            ``count_word`` and ``parity``.
        alphabet: two or more letters or digits. Runs are of its last symbol, and that is what is counted.
        separator: marks between groups of elements; None for none.
        interleave: copying only: instead of a run, the symbols of the alphabet in turn.
        hint: add a sentence that asks to look closely.
        prompt_order: ``"question_first"`` ends the prompt with the sequence, ``"sequence_first"`` with the
            question.
        cot: counting only: ``"zero"`` asks for steps, ``"few"`` shows two solved examples that count in
            groups of five as well, ``"none"`` neither.
        seed: another seed, other sequences.
        template: a format string in the place of the prompts of this package, with ``{payload}`` once and any
            of ``{question} {hint} {cot} {demand} {examples} {query}``.
        prompt_style: ``"words"``, or ``"terse"`` for models of a small vocabulary: the elements with spaces
            between them, and a mark, such as ``"1 0 1 1 = "``.
        held_out: lengths, given as ``lengths`` are, that are left out; `evaluation` has them and no others.

    The sequences depend on ``kind``, ``p``, ``alphabet``, ``interleave``, ``seed`` and their length, and on
    nothing else: two ways to put the same questions can be compared item by item.

    Raises:
        ValueError: a field is out of its range, or has no meaning for this kind.
    """

    kind: str
    lengths: tuple[int, int] | list[int] = (8, 64)
    p: float = 0.7
    alphabet: str = "01"
    separator: SeparatorConfig | None = None
    interleave: bool = False
    hint: bool = False
    prompt_order: str = "question_first"
    cot: str = "none"
    seed: int = 0
    template: str | None = None
    prompt_style: str = "words"
    held_out: tuple[int, int] | list[int] | None = None

    def __post_init__(self) -> None:
        require_one_of("kind", self.kind, KINDS)
        require_one_of("prompt_order", self.prompt_order, PROMPT_ORDERS)
        require_one_of("cot", self.cot, COTS)
        require_one_of("prompt_style", self.prompt_style, PROMPT_STYLES)
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must be a chance in [0, 1], got {self.p!r}")
        if len(set(self.alphabet)) != len(self.alphabet) or len(self.alphabet) < 2:
            raise ValueError(f"alphabet must have two or more different symbols, got {self.alphabet!r}")
        if not (self.alphabet.isascii() and self.alphabet.isalnum()):
            raise ValueError(f"alphabet must be of letters a-z, A-Z and digits 0-9, got {self.alphabet!r}")
        if not isinstance(self.seed, int):
            raise ValueError(f"seed must be an int, got {self.seed!r}")
        if self.separator is not None and not isinstance(self.separator, SeparatorConfig):
            raise ValueError(f"separator must be None or a SeparatorConfig, got {self.separator!r}")
        if self.interleave and self.kind not in COPYING:
            raise ValueError(f"interleave is for {', '.join(COPYING)}; leave it False for {self.kind}")
        if self.cot != "none" and self.kind not in COUNTING:
            raise ValueError(f"cot is for {', '.join(COUNTING)}; leave it 'none' for {self.kind}")
        if self.prompt_style == "terse" and (self.hint or self.cot != "none" or self.template is not None):
            raise ValueError(
                "prompt_style='terse' has no words: leave hint, cot and template, or take 'words'"
            )
        if self.template is not None:
            check_template(self.template)
        if not self.length_values:
            raise ValueError(f"held_out={self.held_out!r} leaves none of lengths={self.lengths!r}")

    @property
    def length_values(self) -> tuple[int, ...]:
        """The lengths there are, in ascending order, without those held out."""
        held_out = set() if self.held_out is None else values_of("held_out", self.held_out)
        return tuple(sorted(values_of("lengths", self.lengths) - held_out))

    @property
    def counted(self) -> str:
        """The element that is counted, and that runs are made of."""
        if self.kind == "sum_ones":
            return "1"
        return "car" if self.kind == "count_word" else self.alphabet[-1]

    def evaluation(self) -> TaskConfig:
        """The same task at the lengths that are held out, and at no others.

        Raises:
            ValueError: none are.
        """
        if self.held_out is None:
            raise ValueError("Nothing is held out: give held_out=(lo, hi) or a list of lengths.")
        return replace(self, lengths=self.held_out, held_out=None)


def values_of(name: str, lengths: tuple[int, int] | list[int]) -> set[int]:
    """The lengths that ``(lo, hi)`` or a list stands for."""
    ints = isinstance(lengths, tuple | list) and all(isinstance(n, int) and n >= 1 for n in lengths)
    if not ints or not lengths:
        raise ValueError(f"{name} must be (lo, hi) or a list, of ints of at least 1, got {lengths!r}")
    if isinstance(lengths, list):
        return set(lengths)
    if len(lengths) != 2 or lengths[0] > lengths[1]:
        raise ValueError(
            f"{name} as a tuple is (lo, hi) with lo <= hi; take a list otherwise, got {lengths!r}"
        )
    return set(range(lengths[0], lengths[1] + 1))


def check_template(template: str) -> None:
    """A ValueError unless ``template`` has ``{payload}`` once and no fields that are unknown."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    unknown = sorted(set(names) - set(TEMPLATE_FIELDS))
    if unknown:
        raise ValueError(f"template has unknown fields {unknown}; there are {list(TEMPLATE_FIELDS)}")
    if names.count("payload") != 1 or template.count("{payload}") != 1:
        raise ValueError("template must have {payload} exactly once, without a format")
