"""Dialogues made by a grammar: facts told early and asked for later, under rules of form.

    for dialogue in dialogues(2, seed=0, split="train"):
        dialogue.prompt   # [{"role": "system", ...}, {"role": "user", ...}, ..., {"role": "user", ...}]
        dialogue.answer   # "sure : 1 ada is 4 . 2 ben is 7 . 3 4 plus 7 is 11 . 4 the total is 11 . over"
        dialogue.wanted   # what a rubric looks for

A system line gives a tone, a first word, a layout and a last word. Then a user presents two animals, asks
something short perhaps once or twice, and at last something that takes several statements: all about one
animal, a comparison, a sum with its steps, a list turned round. That last answer has 12 to 40 words.

Answers are drawn, and so teach a model an entropy: of two ways to say something the tone's usual one is taken
with probability `USUAL`, and a value is mistaken, for the other animal's or for the next number, with
probability `SLIP`. The likeliest token is therefore right, by a margin of about log(USUAL / (1 - USUAL)),
1.7 nats, or log((1 - SLIP) / SLIP), 2.4: of these a good model is sure, though not so sure that nothing
could change its mind.

The splits share no animal (a name with all that is told of it), no phrasing (a lead with a question, a
presentation with an order of details) and no set of rules. Their words are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from . import dialogue_words as words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]

#: share of draws in which the tone decides between two ways to say something
USUAL = 0.85
#: share of values that the assistant mistakes in the last answer
SLIP = 0.08
#: share of last words and layout marks that break the rule
LAPSE = 0.03
#: remainders of a combination's number, of `PARTS`, that belong to a split
SPLITS = {"test": (0,), "valid": (1,), "train": (2, 3, 4)}
PARTS = 5
#: questions before the last one, and how often
SHORT_QUESTIONS = (0.5, 0.35, 0.15)
#: last questions, and how often
TASKS = {"describe": 0.25, "sum": 0.2, "compare": 0.15, "reverse": 0.15, "chain": 0.15, "both": 0.1}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@dataclass(frozen=True)
class Wanted:
    """What a good answer has.

    Attributes:
        beginning, ending: its first and its last word.
        markers: what stands before each statement.
        facts: of each statement the words that matter, in order.
    """

    beginning: str
    ending: str
    markers: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Dialogue:
    """A conversation that ends with an answer, and what was wanted of that.

    Attributes:
        messages: system, user, assistant, ..., user, assistant.
        wanted: of the last message.
    """

    messages: list[Message]
    wanted: Wanted

    @property
    def prompt(self) -> list[Message]:
        """All but the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer, as it was drawn: it may be mistaken."""
        return self.messages[-1]["content"]


def dialogues(n: int, seed: int, split: str) -> list[Dialogue]:
    """``n`` dialogues of a split (train, valid or test), no two of which have the same prompt."""
    generator = np.random.default_rng((seed, list(SPLITS).index(split)))
    found: dict[str, Dialogue] = {}
    while len(found) < n:
        dialogue = _Author(generator, split).write()
        found.setdefault(prompt_key(dialogue.prompt), dialogue)
    return list(found.values())


def prompt_key(prompt: list[Message]) -> str:
    """A prompt as one string."""
    return " | ".join(message["content"] for message in prompt)


@dataclass(frozen=True)
class _Statement:
    """A kind of `words.SAYINGS`, what stands in its gaps, and the names of the gaps that matter."""

    kind: str
    gaps: dict[str, str]

    @property
    def fact(self) -> tuple[str, ...]:
        """The words that matter, in the order in which both ways to say it have them."""
        names = [word[1:-1] for word in words.SAYINGS[self.kind][0].split() if word.startswith("{")]
        return tuple(word for name in names for word in self.gaps[name].split())


class _Author:
    """Writes one dialogue."""

    def __init__(self, generator: np.random.Generator, split: str) -> None:
        self.generator, self.split = generator, split
        self.tone = int(generator.integers(2))
        self.layout, self.beginning, self.ending = self._together(
            tuple(words.LAYOUTS), words.BEGINNINGS, words.ENDINGS
        )
        first = self._animal()
        self.animals = [first, self._animal(not_called=first["name"])]

    def write(self) -> Dialogue:
        system = words.SYSTEM.format(
            tone=words.TONES[self.tone], beginning=self.beginning, layout=self.layout, ending=self.ending
        )
        told = " ".join(self._present(animal) for animal in self.animals)
        messages = [_message("system", system), _message("user", told)]
        noted = [_Statement(self._one_of(tuple(words.DETAILS)), animal) for animal in self.animals]
        messages.append(_message("assistant", self._answer(noted)))
        short = [(animal, kind) for animal in self.animals for kind in words.DETAILS]
        count = self.generator.choice(len(SHORT_QUESTIONS), p=SHORT_QUESTIONS)
        for i in self.generator.choice(len(short), count, replace=False):
            animal, kind = short[i]
            messages.append(_message("user", self._ask(kind, animal)))
            messages.append(_message("assistant", self._answer([_Statement(kind, animal)])))
        question, statements = self._task()
        messages.append(_message("user", question))
        messages.append(_message("assistant", self._answer(self._mistaken(statements), LAPSE)))
        markers = words.LAYOUTS[self.layout][: len(statements)]
        facts = tuple(statement.fact for statement in statements)
        return Dialogue(messages, Wanted(self.beginning, self.ending, markers, facts))

    def _one_of(self, options: tuple[str, ...]) -> str:
        return options[self.generator.integers(len(options))]

    def _together(self, *groups: tuple[str, ...]) -> list[str]:
        """One of each group, in a combination that belongs to the split."""
        while True:
            places = [int(self.generator.integers(len(group))) for group in groups]
            if sum(places) % PARTS in SPLITS[self.split]:
                return [group[place] for group, place in zip(groups, places, strict=True)]

    def _animal(self, not_called: str = "") -> dict[str, str]:
        while True:
            values = self._together(*words.ANIMAL.values())
            animal = dict(zip(words.ANIMAL, values, strict=True))
            if animal["name"] != not_called:
                return animal

    def _present(self, animal: dict[str, str]) -> str:
        orders = tuple(" ".join(order) for order in permutations(words.DETAILS))
        presentation, order = self._together(words.PRESENTATIONS, orders)
        details = " ".join(words.DETAILS[name] for name in order.split())
        return f"{presentation} {details}".format(**animal)

    def _ask(self, kind: str, gaps: dict[str, str]) -> str:
        lead, question = self._together(words.LEADS, words.QUESTIONS[kind])
        return f"{lead} {question}".strip().format(**gaps)

    def _task(self) -> tuple[str, list[_Statement]]:
        """The last question, and what there is to say."""
        task = str(self.generator.choice(list(TASKS), p=list(TASKS.values())))
        first, second = self.animals
        a, b = int(first["age"]), int(second["age"])
        ages = [_Statement("age", animal) for animal in self.animals]
        if task == "both":
            detail = self._one_of(("place", "food"))
            return self._ask(f"{detail}s", {}), [_Statement(detail, animal) for animal in self.animals]
        if task == "sum" or (task == "compare" and a == b):
            total = [_Statement("plus", _numbers(a=a, b=b, c=a + b)), _Statement("total", _numbers(c=a + b))]
            return self._ask("sum", {}), ages + total
        if task == "compare":
            older = max(self.animals, key=lambda animal: int(animal["age"]))
            more = _Statement("more", _numbers(a=max(a, b), b=min(a, b)))
            return self._ask("compare", {}), [*ages, more, _Statement("older", {**older, "more": "older"})]
        if task == "reverse":
            things = self.generator.choice(words.THINGS, self.generator.integers(3, 6), replace=False)
            there, back = " ".join(things), " ".join(things[::-1])
            statements = [_Statement("list", {"things": there}), _Statement("reversed", {"things": back})]
            return self._ask("reverse", {"things": there}), statements
        animal = self.animals[self.generator.integers(2)]
        if task == "chain":
            return self._chain(animal)
        return self._ask("describe", animal), [
            _Statement(kind, animal) for kind in ("looks", "age", "place", "food")
        ]

    def _chain(self, animal: dict[str, str]) -> tuple[str, list[_Statement]]:
        start, more = (int(number) for number in self.generator.integers(1, 13, 2))
        less = int(self.generator.integers(1, min(12, start + more)))
        gaps = {"name": animal["name"], "counted": self._one_of(words.COUNTED)}
        numbers = _numbers(start=start, more=more, less=less)
        have, left = start + more, start + more - less
        return self._ask("chain", {**gaps, **numbers}), [
            _Statement("plus", _numbers(a=start, b=more, c=have)),
            _Statement("minus", _numbers(a=have, b=less, c=left)),
            _Statement("left", {**gaps, **_numbers(c=left)}),
        ]

    def _mistaken(self, statements: list[_Statement]) -> list[_Statement]:
        """The same with some values mistaken, each on its own."""
        return [_Statement(s.kind, {k: self._slip(k, v, s) for k, v in s.gaps.items()}) for s in statements]

    def _slip(self, gap: str, value: str, statement: _Statement) -> str:
        if gap in ("name", "a", "b") or self.generator.random() >= SLIP:
            return value
        if gap == "c":
            return str(int(value) + (1 if value == "0" else self.generator.choice((-1, 1))))
        if gap == "things":
            things = value.split()
            i = self.generator.integers(len(things) - 1)
            things[i], things[i + 1] = things[i + 1], things[i]
            return " ".join(things)
        return next((a[gap] for a in self.animals if a.get(gap, value) != value), value)

    def _answer(self, statements: list[_Statement], lapse: float = 0.0) -> str:
        introduction = self.generator.choice(list(words.INTRODUCTIONS), p=list(words.INTRODUCTIONS.values()))
        said = [self.beginning, str(introduction)]
        for marker, statement in zip(words.LAYOUTS[self.layout], statements, strict=False):
            usual = self.generator.random() < USUAL
            text = words.SAYINGS[statement.kind][self.tone if usual else 1 - self.tone]
            if self.generator.random() < lapse:
                marker = self._one_of(("1", "-", "a)", "first"))
            said.append(f"{marker} {text.format(**statement.gaps)} .")
        said.append(self._one_of(words.ENDINGS) if self.generator.random() < lapse else self.ending)
        return " ".join(said)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _numbers(**values: int) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token. Pads on the left; in its chat template every turn ends in the end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words.vocabulary()])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_ids(tokenizer: Any, dialogue: Dialogue) -> tuple[list[int], list[bool]]:
    """A whole dialogue as tokens, and whether each was said by the assistant: its end is, its role is not."""
    ids: list[int] = []
    said: list[bool] = []
    for message in dialogue.messages:
        turn = tokenizer.apply_chat_template([message], tokenize=True, return_dict=True)["input_ids"]
        ids += turn
        said += [False] + [message["role"] == "assistant"] * (len(turn) - 1)
    return ids, said
