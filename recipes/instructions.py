"""Instructions made by a grammar, with several right answers each, whose probabilities are known exactly.

    world = Instructions()
    generator = np.random.default_rng(0)
    prompt = world.prompt(generator, "train")    # "list 3 red things without brick :"
    answer = world.answer(prompt, generator)     # "- ruby - rose - poppy"
    world.log_prob(prompt, answer)               # -4.82...

There are lists (things of one colour and of one kind, none twice), sorting, reversing, sums, questions with
two choices, and sentences to be said otherwise (formal throughout, or casual throughout). An answer has from
1 to 24 words. What makes it right is decided by words far apart, so one wrong word spoils it; and since every
prompt has many right answers, a small model has to choose between covering them all and being right.

The law of the answers to a prompt is a tree of :mod:`.branches`.
"""

from __future__ import annotations

import math
import zlib
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from . import instruction_words as words
from .branches import Branches, enumerate_texts, probability, sample, say, zipf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = {"test": (0,), "valid": (1,), "train": tuple(range(2, 10))}
END = " :"  # of every prompt
MAX_WORDS = 24  # of an answer


def _list(parts: list[tuple[int, str]], without: str) -> Branches:
    """Things of one colour after the other, all of one kind, none twice."""

    def items(style: str, kind: str, part: int, taken: tuple[str, ...]) -> Branches:
        n, colour = parts[part]
        left = n - len(taken)
        if left == 0:
            rest = partial(opening, style, kind, part + 1) if part + 1 < len(parts) else None
            return say("" if style == "bullets" else ".", rest)
        before = {"bullets": "-", "sentence": ""}.get(style, str(1 + len(taken)))
        if style == "sentence" and taken:
            before = "and" if left == 1 else ","
        return [
            (p, f"{before} {thing}", partial(items, style, kind, part, (*taken, thing)))
            for p, thing in zipf(words.THINGS[colour][kind], (*taken, without))
        ]

    def opening(style: str, kind: str, part: int) -> Branches:
        n, colour = parts[part]
        text = f"here are {n} {colour} things :" if style == "sentence" else ""
        return say(text, lambda: items(style, kind, part, ()))

    def kinds(style: str) -> Branches:
        first = parts[0][1]
        chosen = ("food", "other") if words.COLOURS.index(first) % 2 else ("other", "food")
        return [(p, "", partial(opening, style, kind, 0)) for p, kind in zipf(chosen)]

    styles = ((0.5, "sentence"), (0.3, "numbers"), (0.2, "bullets"))
    return [(p, "", partial(kinds, style)) for p, style in styles]


def _sort(numbers: list[int]) -> Branches:
    up = " ".join(map(str, sorted(numbers)))
    down = " ".join(map(str, sorted(numbers, reverse=True)))
    return [
        (0.5, up, None),
        (0.3, f"from low to high : {up} .", None),
        (0.2, f"from high to low : {down} .", None),
    ]


def _reverse(items: list[str]) -> Branches:
    backwards = items[::-1]
    return [(0.6, " ".join(backwards), None), (0.4, f"backwards : {' , '.join(backwards)} .", None)]


def _add(numbers: list[int]) -> Branches:
    total, sums = numbers[0], []
    for number in numbers[1:]:
        sums.append(f"{total} plus {number} is {total + number}")
        total += number
    return [
        (0.5, str(total), None),
        (0.3, f"{' , '.join(sums)} .", None),
        (0.2, f"the sum is {total} .", None),
    ]


def _choose(thing: str, first: str, second: str) -> Branches:
    """The colour of a thing, of which people are sure to a degree that depends on the thing."""
    right, wrong = (first, second) if thing in words.all_of(first) else (second, first)
    sure = (0.98, 0.9, 0.8, 0.7, 0.6)[words.all_of(right).index(thing) % 5]
    return [(sure, right, None), (1 - sure, wrong, None)]


def _rewrite(sentence: list[str]) -> Branches:
    """Each word by a synonym of one register, which also decides how the sentence begins and ends."""
    adjective, noun, verb, where, place = (sentence[i] for i in (1, 2, 3, 6, 7))
    who, there = ["the", adjective, noun], ["to", "the", where, place]

    def fill(register: str, rest: list[str]) -> Branches:
        if not rest:
            return [(p, text, None) for p, text in zipf(words.ENDINGS[register])]
        word, *rest = rest
        synonyms = words.SYNONYMS.get(word, {register: (word,)})[register]
        return [(p, text, lambda: fill(register, rest)) for p, text in zipf(synonyms)]

    def order(register: str) -> Branches:
        plain, turned = [*who, verb, *there], [*there, *who, verb]
        return [(0.6, "", lambda: fill(register, plain)), (0.4, "", lambda: fill(register, turned))]

    def begin(register: str) -> Branches:
        return [(p, text, lambda: order(register)) for p, text in zipf(words.OPENINGS[register])]

    return [(0.55, "", lambda: begin("formal")), (0.45, "", lambda: begin("casual"))]


def _story(sentences: int = 3) -> Branches:
    """Plain text: what happened to somebody, and what colours things have."""

    def thing(subject: str, left: int, before: str, after: str) -> Branches:
        return [
            (1 / 6 * p / 2, f"{before} {colour} {item} {after}", lambda: sentence(subject, left))
            for colour in words.COLOURS
            for kind in ("food", "other")
            for p, item in zipf(words.THINGS[colour][kind])
        ]

    def walk(subject: str, left: int) -> Branches:
        return [
            (p * q, f"{subject} {verb} to the {place} .", lambda: sentence("it", left))
            for p, verb in zipf(words.VERBS)
            for q, place in zipf(words.PLACES)
        ]

    def sentence(subject: str, left: int) -> Branches:
        if left == 0:
            return say("")
        return [
            (0.4, "", lambda: walk(subject, left - 1)),
            (0.3, "", lambda: thing(subject, left - 1, f"{subject} saw a", ".")),
            (0.3, "", lambda: thing(subject, left - 1, f"{subject} wanted the", "very much .")),
        ]

    return [
        (p * q, "", partial(sentence, f"the {adjective} {noun}", sentences))
        for p, adjective in zipf(words.ADJECTIVES)
        for q, noun in zipf(words.NOUNS)
    ]


#: the tasks and their shares of the prompts
TASKS = {"list": 0.35, "sort": 0.1, "reverse": 0.05, "add": 0.1, "choose": 0.1, "rewrite": 0.3}


class Instructions:
    """Prompts, their answers, and plain text. All methods take and give texts of words between spaces."""

    def prompt(self, generator: np.random.Generator, split: str = "train", task: str | None = None) -> str:
        """A random prompt of a split; no prompt is in two splits.

        Args:
            generator: draws.
            split: train, valid or test: of ten prompts, eight, one and one.
            task: one of `TASKS`, or any of them by their shares.
        """
        while True:
            name = task or str(generator.choice(list(TASKS), p=list(TASKS.values())))
            text = getattr(self, f"_draw_{name}")(generator) + END
            if zlib.crc32(text.encode()) % 10 in SPLITS[split]:
                return text

    def answer(self, prompt: str, generator: np.random.Generator) -> str:
        """A random answer to a prompt."""
        return sample(self._law(prompt), generator)

    def log_prob(self, prompt: str, answer: str) -> float:
        """The logarithm of an answer's probability, in nats; minus infinity for wrong answers."""
        return _log(probability(self._law(prompt), answer.split()))

    def is_valid(self, prompt: str, answer: str) -> bool:
        """Whether it is one of the right answers."""
        return self.log_prob(prompt, answer) > -math.inf

    def answers(self, prompt: str) -> dict[str, float]:
        """All right answers and their probabilities. There may be tens of thousands."""
        return enumerate_texts(self._law(prompt))

    def choices(self, prompt: str) -> list[str] | None:
        """The two answers that there are to a question; None if the prompt is none."""
        if not prompt.startswith("choose "):
            return None
        _, _, first, _, second, _ = prompt.split()
        return [first, second]

    def text(self, generator: np.random.Generator) -> str:
        """A plain text: three sentences, which are no answer to anything."""
        return sample(_story(), generator)

    def text_log_prob(self, text: str) -> float:
        """The logarithm of a plain text's probability, in nats."""
        return _log(probability(_story(), text.split()))

    def _law(self, prompt: str) -> Branches:
        task, *rest, _ = prompt.split()
        if task == "list":
            without = rest[rest.index("without") + 1] if "without" in rest else ""
            parts = [(int(n), colour) for n, colour in pairwise(rest) if n.isdigit()]
            return _list(parts, without)
        if task in ("sort", "add"):
            return {"sort": _sort, "add": _add}[task]([int(number) for number in rest])
        if task == "choose":
            return _choose(rest[0], rest[1], rest[3])
        return _reverse(rest) if task == "reverse" else _rewrite(rest)

    @staticmethod
    def _draw_list(generator: np.random.Generator) -> str:
        if generator.random() < 0.4:
            a, b = generator.choice(words.COLOURS, 2, replace=False)
            n, m = generator.integers(1, 4, 2)
            return f"list {n} {a} and {m} {b} things"
        colour, n = generator.choice(words.COLOURS), generator.integers(2, 5)
        without = f" without {generator.choice(words.all_of(colour))}" if generator.random() < 0.8 else ""
        return f"list {n} {colour} things{without}"

    @staticmethod
    def _draw_sort(generator: np.random.Generator) -> str:
        numbers = generator.choice(words.MAX_NUMBER + 1, generator.integers(2, 5), replace=False)
        return f"sort {' '.join(map(str, numbers))}"

    @staticmethod
    def _draw_reverse(generator: np.random.Generator) -> str:
        return (
            f"reverse {' '.join(generator.choice(words.ALL_THINGS, generator.integers(2, 5), replace=False))}"
        )

    @staticmethod
    def _draw_add(generator: np.random.Generator) -> str:
        return f"add {' '.join(map(str, generator.integers(0, 7, generator.integers(2, 4))))}"

    @staticmethod
    def _draw_choose(generator: np.random.Generator) -> str:
        right, wrong = generator.choice(words.COLOURS, 2, replace=False)
        first, second = generator.permutation([right, wrong])
        return f"choose {generator.choice(words.all_of(right))} {first} or {second}"

    @staticmethod
    def _draw_rewrite(generator: np.random.Generator) -> str:
        adjective, where = generator.choice(words.ADJECTIVES, 2)
        noun, verb, place = (generator.choice(group) for group in (words.NOUNS, words.VERBS, words.PLACES))
        return f"rewrite the {adjective} {noun} {verb} to the {where} {place}"


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -math.inf


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token. It pads on the left, and has marks of the beginning, of the end and of padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*marks, *words.vocabulary()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
