"""Remedies side by side: what is asked, what is reckoned from it, and what is said."""

import json
import math
import warnings
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from extensions.glasses import HFCausalLM, representation_gap
from extensions.glasses.answers import answer_items
from extensions.glasses.compare import compare
from extensions.glasses.comparison import Arm, Comparison, Gain, gains
from extensions.glasses.remedies import Alternate, Dilute, Filler, adaptive_temperature, sliding_window
from extensions.glasses.statistics import CriticalLength, wilson
from extensions.glasses.tasks import Question

LENGTHS = (4, 8, 16)


@dataclass
class Learned:
    """A task that a model masters to a length: what it says itself is the answer, beyond it another word."""

    model: HFCausalLM
    masters: int
    name: str = "learned"

    def items(self, length, size):
        return [self._item(length, i) for i in range(size)]

    def _item(self, length, seed):
        digits = torch.randint(10, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        text = " ".join(map(str, digits))
        item = Question(
            f"What is the last digit in {text} ?",
            (26, 26 + len(text)),
            tuple(map(str, digits)),
            " answer :",
            "car",
            length,
        )
        said = answer_items(self.model, [item]).said[0]
        return Question.of(item, answer=said if length <= self.masters else "car" if said != "car" else "dog")


@pytest.fixture(scope="module")
def compared(make_llama, word_tokenizer):
    model = HFCausalLM(make_llama(len(word_tokenizer), seed=3), word_tokenizer)
    remedies = [Dilute(3, " ,"), Alternate("-"), adaptive_temperature, partial(sliding_window, window=1)]
    found = compare(
        model, [Learned(model, 8)], remedies, LENGTHS, trials=6, pairs=2, dtypes=["float32", "bfloat16"]
    )
    return model, found


def test_separators_come_with_their_controls(compared):
    _, found = compared
    assert list(found.arms) == [
        "learned/plain",
        "learned/dilute(3, ',')",
        "learned/alternate('-')",
        "learned/adaptive_temperature",
        "learned/sliding_window(window=1)",
        "learned/dilute(3, ',', right)",
        "learned/filler(3, ',')",
    ]
    assert found.arm("learned", "dilute(3, ',')").controls == ("dilute(3, ',', right)", "filler(3, ',')")
    assert all(set(arm.gap) == {1, 3} for arm in found.arms.values())


def test_plain_is_right_as_far_as_the_task_is_mastered(compared):
    _, found = compared
    plain = found.arm("learned")
    assert plain.accuracy["float32"].tolist() == [1, 1, 0]
    half = (1 + found.chance["learned"]) / 2
    assert plain.n50["float32"].length == pytest.approx(8 * 2 ** (1 - half))
    assert plain.gain["float32"] == Gain(1.0, 1.0)
    assert (plain.margin["float32"][:2] > 0).all()
    assert plain.margin["float32"][2] < 0
    assert plain.low["float32"][0] == pytest.approx(0.6097, abs=1e-4)
    assert set(plain.accuracy) == {"float32", "bfloat16"}


def test_tokens_and_budget(compared):
    _, found = compared
    plain, separated, filler, alternate = (
        found.arm("learned", name).tokens.tolist()
        for name in ("plain", "dilute(3, ',')", "filler(3, ',')", "alternate('-')")
    )
    assert plain == [n + 10 for n in LENGTHS]
    assert separated == filler == [n + 10 + (n - 1) // 3 for n in LENGTHS]
    assert alternate == [n + 10 + n - 1 for n in LENGTHS]


@pytest.mark.parametrize(
    ("remedy", "more"), [("plain", 1), ("plain", 3), ("dilute(3, ',')", 1), ("dilute(3, ',')", 3)]
)
def test_gaps_are_those_of_items_with_their_last_element_repeated(compared, remedy, more):
    model, found = compared
    write = (lambda item: item) if remedy == "plain" else Dilute(3, " ,")
    expected = []
    for item in Learned(model, 8).items(8, 2):
        text = " ".join([*item.payload, *[item.payload[-1]] * more])
        longer = Question(
            f"What is the last digit in {text} ?", (26, 26 + len(text)), tuple(text.split()), "", "", 0
        )
        a, b = (
            torch.tensor([model.tokenizer(write(x).prompt + item.lead)["input_ids"]]) for x in (item, longer)
        )
        expected.append(representation_gap(model, a, b, dtypes=(), norms=["linf"]).gap["float32"][0, -1, 0])
    assert found.arm("learned", remedy).gap[more][1].item() == pytest.approx(
        torch.stack(expected).mean().item(), rel=1e-5
    )


def test_remedies_of_attention_are_on_while_a_model_is_asked(compared):
    model, found = compared
    items = Learned(model, 8).items(8, 6)
    with sliding_window(model, 1):
        expected = answer_items(model, items, chunk=8).margin.mean()
    arm = found.arm("learned", "sliding_window(window=1)")
    assert arm.margin["float32"][1].item() == pytest.approx(expected.item(), abs=1e-5)
    assert arm.gap[1].max() < 0.02 * found.arm("learned").gap[1].min()  # it sees its own token alone
    assert not torch.equal(
        found.arm("learned", "adaptive_temperature").margin["float32"], found.arm("learned").margin["float32"]
    )


def test_a_comparison_is_written(compared):
    _, found = compared
    read = json.loads(found.to_json())
    assert read["arms"]["learned/plain"]["accuracy"]["float32"] == [1, 1, 0]
    assert read["arms"]["learned/plain"]["n50"]["float32"]["censored"] == "no"
    tensors = found.to_tensordict()
    assert torch.equal(tensors["arms", "learned/plain", "gap", "3"], found.arm("learned").gap[3])
    assert len(found.verdicts()) == 7 * 2 + 3
    with pytest.raises(KeyError, match="no arm 'learned/more'"):
        found.arm("learned", "more")


NO = CriticalLength
TOKENS, PLAIN_TOKENS = torch.tensor([12.0, 22.0, 42.0]), torch.tensor([10.0, 18.0, 34.0])


@pytest.mark.parametrize(
    ("found", "plain", "elements", "tokens"),
    [
        (NO(12, "no"), NO(6, "no"), (2, 2), (32 / 14, 32 / 14)),
        (NO(math.inf, "right"), NO(8, "no"), (2, math.inf), (42 / 18, math.inf)),
        (NO(8, "no"), NO(4, "left"), (2, math.inf), (2.2, math.inf)),
        (NO(8, "no"), NO(math.inf, "right"), (0, 0.5), (0, 22 / 34)),
        (NO(4, "left"), NO(8, "no"), (0, 0.5), (0, 12 / 18)),
        (NO(math.inf, "right"), NO(math.inf, "right"), (0, math.inf), (0, math.inf)),
        (NO(4, "left"), NO(4, "left"), (0, math.inf), (0, math.inf)),
    ],
)
def test_gains_are_as_open_as_what_was_seen(found, plain, elements, tokens):
    by_element, by_token = gains(found, plain, LENGTHS, TOKENS, PLAIN_TOKENS)
    assert (by_element.low, by_element.high) == pytest.approx(elements)
    assert (by_token.low, by_token.high) == pytest.approx(tokens)


def arm(remedy, n50, gain, gap, every=None, controls=()):
    return Arm(
        task="count",
        remedy=remedy,
        every=every,
        controls=controls,
        tokens=torch.tensor([70.0, 130.0]),
        **{name: {"float32": torch.zeros(2)} for name in ("accuracy", "low", "high", "margin")},
        said={"float32": ((), ())},
        n50={"float32": n50},
        gain={"float32": gain},
        token_gain={"float32": gain},
        gap={more: torch.tensor(values) for more, values in gap.items()},
    )


def test_verdicts_carry_numbers():
    arms = [
        arm("plain", NO(430, "no"), Gain(1, 1), {1: [2.5, 0.53], 3: [3.3, 2.2]}),
        arm("commas", NO(540, "no"), Gain(1.25, 1.25), {1: [3.7, 1.9], 3: [2.9, 0.84]}, 3, ("filler",)),
        arm("filler", NO(math.inf, "right"), Gain(1.4, math.inf), {1: [2.0, 0.5], 3: [3.0, 2.0]}, 3),
        arm("window", NO(60, "left"), Gain(0, 0.2), {1: [0.0, 0.0], 3: [0.0, 0.0]}),
    ]
    found = Comparison((60, 120), (8, 8), 2, "linf", {"count": 0.5}, {f"count/{a.remedy}": a for a in arms})
    assert found.verdicts() == [
        "count, plain, float32: accuracy is under 0.75 from n = 430 on",
        "count, commas, float32: accuracy is under 0.75 from n = 540 on; n50 x1.25 in elements, x1.25 in "
        "tokens; filler at least x1.4: a control gains as much",
        "count, commas: gap of (n, n+1) x3.6 at n=120, but x0.38 on the phase-matched pair (n, n+3): the "
        "gain is local",
        "count, filler, float32: accuracy is at least 0.75 at the longest n, 120; n50 at least x1.4 in "
        "elements, at least x1.4 in tokens",
        "count, filler: gap of (n, n+1) x0.94 at n=120, and x0.91 on the phase-matched pair (n, n+3): no "
        "gain",
        "count, window, float32: accuracy is under 0.75 from the shortest n on, 60; n50 at most x0.2 in "
        "elements, at most x0.2 in tokens",
    ]


def test_what_is_not_answered_at_all_says_nothing_of_length():
    never = NO(60, "left")
    arms = [
        arm("plain", never, Gain(0, math.inf), {1: [2.0, 1.0], 3: [4.0, 2.0]}),
        arm("commas", never, Gain(0, math.inf), {1: [2.0, 0.5], 3: [2.0, 1.0]}, 3),
    ]
    found = Comparison((60, 120), (8, 8), 2, "linf", {"count": 0.5}, {f"count/{a.remedy}": a for a in arms})
    first, second = found.verdicts()
    assert first.startswith(
        "count: not answered at n = 60 already, with any remedy or none (accuracy at most 0)"
    )
    assert second.startswith("count, commas: gap of (n, n+1) x1 at n=60")


def test_fewer_trials_of_longer_items(make_llama, char_tokenizer):
    from envs.sequence_tasks import SequenceTask

    model = HFCausalLM(make_llama(len(char_tokenizer)), char_tokenizer)
    task = SequenceTask("copy_last", prompt_style="terse")
    found = compare(model, [task], [], (4, 8), trials=(6, 2), pairs=1)
    plain = found.arm("copy_last")
    assert found.trials == (6, 2)
    assert [len(said) for said in plain.said["float32"]] == [6, 2]
    low, high = wilson((plain.accuracy["float32"] * torch.tensor([6, 2])).round(), torch.tensor([6, 2]))
    assert torch.allclose(plain.low["float32"], low)
    assert torch.allclose(plain.high["float32"], high)
    with pytest.raises(ValueError, match="one for each of 2 lengths; got 3"):
        compare(model, [task], [], (4, 8), trials=(6, 2, 2))
    with pytest.raises(ValueError, match="pairs must be from 1 to trials, 2; got 3"):
        compare(model, [task], [], (4, 8), trials=(6, 2), pairs=3)


def test_separators_that_merge_are_warned_of(make_llama, merging_tokenizer):
    model = HFCausalLM(make_llama(len(merging_tokenizer)), merging_tokenizer)

    class Ones:
        name = "ones"

        def items(self, length, size):
            return [
                Question("Q " + "1" * length, (2, 2 + length), ("1",) * length, " = ", str(length), length)
            ] * size

    with pytest.warns(UserWarning, match="'111,' is one token"):
        compare(model, [Ones()], [Dilute(3)], [6, 9], trials=1, pairs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(model, [Ones()], [Filler(3)], [6, 9], trials=1, pairs=1)


def test_bad_input(llama):
    task = Learned(llama, 8)
    with pytest.raises(ValueError, match="lengths must be"):
        compare(llama, [task], [], [8, 4])
    with pytest.raises(ValueError, match="pairs must be"):
        compare(llama, [task], [], [4], trials=2, pairs=3)
    with pytest.raises(ValueError, match="two remedies are named"):
        compare(llama, [task], [Dilute(3), Dilute(3)], [4])
    with pytest.raises(ValueError, match="names of their own"):
        compare(llama, [task, task], [], [4])
    with pytest.raises(ValueError, match="give chance=0"):
        compare(llama, [Learned(llama, 0)], [], [4], trials=4)
    with pytest.raises(ValueError, match="give the tokenizer"):
        compare(HFCausalLM(llama.module), [task], [], [4, 8, 16], trials=4)
