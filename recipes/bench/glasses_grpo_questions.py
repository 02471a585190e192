"""The questions of :mod:`.glasses_grpo`, as text and as tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from envs.sequence_tasks import SeparatorConfig, SequenceTask
from extensions.glasses.tasks import Question

from .glasses_grpo_plan import EVERY, Setting

MARK = ","
PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"


def make_tokenizer(setting: Setting) -> PreTrainedTokenizerFast:
    """Words to tokens: every count that is an answer is one token."""
    words = [PAD, BOS, EOS, UNKNOWN, MARK, "=", *(str(n) for n in range(1, setting.longest + 1))]
    words_to_ids = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if setting.framed:
        words_to_ids.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
    )


def question(setting: Setting, arm: str, ones: int, draw: random.Random) -> Question:
    """How many ones are there? ``draw`` places the separators of the filler arm, as many as others have."""
    side = {"sep_left": "left", "sep_right": "right"}.get(arm)
    separator = None if side is None else SeparatorConfig(EVERY, MARK, side)
    item = SequenceTask("count_ones", separator=separator, prompt_style="terse").items(ones, 1)[0]
    start, end = item.payload_span
    text, after = item.prompt[start:end], item.prompt[end:]
    if arm == "filler":
        marks = set(draw.sample(range(1, ones), len(range(EVERY, ones, EVERY))))
        text = " ".join(f"{MARK} {one}" if i in marks else one for i, one in enumerate(item.payload))
    prompt = text + after if setting.framed else text
    return Question.of(item, prompt=prompt, payload_span=(0, len(text)))


def pool(setting: Setting, arm: str, seed: int) -> list[Question]:
    """The questions that are trained and evaluated on."""
    draw = random.Random(f"{arm} {seed}")
    return [
        question(setting, arm, ones, draw)
        for ones in range(1, setting.longest + 1)
        for _ in range(setting.longest // ones if setting.uneven else 1)
    ]


@dataclass(frozen=True)
class ArmPairs:
    """n and n + ``more`` ones as an arm puts them; a `PairFamily`.

    With separators from the left, n and n + 1 differ near the end in how many ones follow the last of them,
    whatever became of the count: n and n + `EVERY` do not.
    """

    setting: Setting
    arm: str
    tokenizer: PreTrainedTokenizerFast
    more: int = 1

    @property
    def name(self) -> str:
        """Such as ``sep_left+3``."""
        return f"{self.arm}+{self.more}"

    def pairs(self, length: int) -> tuple[Tensor, Tensor]:
        """(1, tokens) of each side."""
        sides = [question(self.setting, self.arm, n, random.Random(n)) for n in (length, length + self.more)]
        first, second = (torch.tensor([self.tokenizer(side.prompt)["input_ids"]]) for side in sides)
        return first, second
