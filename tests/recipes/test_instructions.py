"""The procedural instructions: answers follow the law stated, and right is what a reader calls right."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from recipes import instruction_words as words
from recipes.instructions import MAX_WORDS, TASKS, Instructions, make_tokenizer

WORLD = Instructions()


def prompts(task, n, seed=0, split="train"):
    generator = np.random.default_rng(seed)
    return [WORLD.prompt(generator, split, task) for _ in range(n)]


@pytest.mark.parametrize("task", TASKS)
def test_probabilities_sum_to_one_and_log_prob_agrees(task):
    for prompt in prompts(task, 5):
        answers = WORLD.answers(prompt)
        assert sum(answers.values()) == pytest.approx(1, abs=1e-12)
        assert len(set(np.round(list(answers.values()), 12))) > 1, "unequal probabilities"
        for answer, p in list(answers.items())[:200]:
            assert WORLD.log_prob(prompt, answer) == pytest.approx(math.log(p), abs=1e-12)
            assert WORLD.is_valid(prompt, answer)


@pytest.mark.parametrize("task", TASKS)
def test_samples_have_the_frequencies(task):
    generator, n = np.random.default_rng(1), 4_000
    prompt = min(prompts(task, 20), key=lambda prompt: len(WORLD.answers(prompt)))
    counts = Counter(WORLD.answer(prompt, generator) for _ in range(n))
    answers = WORLD.answers(prompt)
    assert counts.keys() <= answers.keys()
    for answer, p in sorted(answers.items(), key=lambda item: -item[1])[:20]:
        assert abs(counts[answer] - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1


def test_samples_are_right_short_enough_and_survive_the_tokenizer():
    tokenizer, generator, lengths = make_tokenizer(), np.random.default_rng(2), set()
    for _ in range(1_000):
        prompt = WORLD.prompt(generator)
        answer = WORLD.answer(prompt, generator)
        assert WORLD.is_valid(prompt, answer)
        ids = tokenizer(f"{prompt}\n{answer}")["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == f"{prompt} {answer}"
        lengths.add(len(answer.split()))
    assert min(lengths) == 1
    assert max(lengths) <= MAX_WORDS
    assert max(lengths) > 20
    assert 200 <= len(tokenizer) <= 300
    batch = tokenizer(["apple", "apple rose"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 1]]


def test_what_is_right_and_what_is_not():
    right = {
        "list 2 red things without apple :": [
            "- brick - rose",
            "1 cherry 2 beet .",
            "here are 2 red things : beet and cherry .",
        ],
        "list 1 red and 2 white things :": [
            "here are 1 red things : rose . here are 2 white things : swan and snow .",
            "- beet - milk - leek",
        ],
        "sort 9 30 2 :": ["2 9 30", "from high to low : 30 9 2 ."],
        "reverse sun oak :": ["oak sun", "backwards : oak , sun ."],
        "add 2 3 4 :": ["9", "2 plus 3 is 5 , 5 plus 4 is 9 .", "the sum is 9 ."],
        "choose apple red or white :": ["red", "white"],
        "rewrite the big dog ran to the old shop :": ["so the huge pup dashed to the creaky mart !"],
    }
    wrong = {
        "list 2 red things without apple :": [
            "- apple - rose",
            "- cherry - cherry",
            "- cherry - rose",
            "- cherry - lime",
            "- cherry",
            "here are 3 red things : beet and cherry .",
        ],
        "list 1 red and 2 white things :": ["- rose - milk - leek", "- milk - beet - leek"],
        "sort 9 30 2 :": ["2 30 9", "from high to low : 2 9 30 .", "2 9 30 .", "2 9 9"],
        "reverse sun oak :": ["sun oak", "backwards : oak , sun"],
        "add 2 3 4 :": ["8", "2 plus 3 is 5 , 5 plus 4 is 8 .", ""],
        "choose apple red or white :": ["green", "red red"],
        "rewrite the big dog ran to the old shop :": [
            "so the huge hound dashed to the creaky mart !",
            "so the huge pup dashed to the creaky mart .",
        ],
    }
    for prompt, answers in right.items():
        assert all(WORLD.is_valid(prompt, answer) for answer in answers), prompt
    for prompt, answers in wrong.items():
        assert [a for a in answers if WORLD.is_valid(prompt, a)] == [], prompt
        assert all(WORLD.log_prob(prompt, answer) == -math.inf for answer in answers)


def test_every_answer_to_a_list_is_of_one_colour_and_kind_and_has_nothing_twice():
    for prompt in prompts("list", 10, seed=3):
        found = Counter(prompt.split())
        for answer in list(WORLD.answers(prompt))[:500]:
            things = [word for word in answer.split() if word in words.ALL_THINGS]
            assert len(set(things)) == len(things) == sum(map(int, re.findall(r"\d", prompt)))
            kinds = {
                k for t in things for by in words.THINGS.values() for k, group in by.items() if t in group
            }
            assert len(kinds) == 1
            assert all(any(t in words.all_of(c) for c in words.COLOURS if found[c]) for t in things)


def test_no_prompt_is_in_two_splits():
    seen = {s: {p for task in TASKS for p in prompts(task, 300, split=s)} for s in ("train", "valid", "test")}
    assert not seen["train"] & seen["valid"]
    assert not seen["train"] & seen["test"]
    assert not seen["valid"] & seen["test"]
    assert all({p.split()[0] for p in found} == set(TASKS) for found in seen.values())


def test_choices_are_the_answers():
    for prompt in prompts("choose", 20):
        assert set(WORLD.choices(prompt)) == WORLD.answers(prompt).keys()
    assert WORLD.choices("add 1 2 :") is None


def test_text_has_the_probability_it_says():
    generator = np.random.default_rng(4)
    texts = [WORLD.text(generator) for _ in range(300)]
    log_probs = np.array([WORLD.text_log_prob(text) for text in texts])
    assert np.isfinite(log_probs).all()
    assert WORLD.text_log_prob(texts[0] + " .") == -math.inf
    # the first two words after "the" are independent of the rest, by Zipf's law
    n = Counter(text.split()[1] for text in texts)
    share = 1 / sum(1 / i for i in range(1, 6))
    assert n["big"] / 300 == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 300))


def test_the_same_generator_says_the_same():
    def said(seed):
        generator = np.random.default_rng(seed)
        prompt = WORLD.prompt(generator)
        return prompt, WORLD.answer(prompt, generator), WORLD.text(generator)

    assert said(5) == said(5) != said(6)
