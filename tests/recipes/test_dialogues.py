"""The procedural dialogues: what is told is what is asked for, and no split knows anything of another."""

from collections import Counter

import numpy as np
import pytest

from recipes import dialogue_words as words
from recipes.dialogues import SPLITS, dialogues, make_tokenizer, prompt_key, token_ids


@pytest.fixture(scope="module")
def by_split():
    return {split: dialogues(400, seed=3, split=split) for split in SPLITS}


def test_a_seed_decides_and_prompts_differ():
    assert dialogues(20, 0, "train") == dialogues(20, 0, "train")
    assert dialogues(20, 0, "train") != dialogues(20, 1, "train")
    keys = {prompt_key(dialogue.prompt) for dialogue in dialogues(2_500, 0, "train")}
    assert len(keys) == 2_500


def test_a_dialogue_is_a_conversation_of_two_to_four_questions(by_split):
    turns, lengths = Counter(), []
    for dialogue in by_split["train"]:
        roles = [message["role"] for message in dialogue.messages]
        assert roles == ["system"] + ["user", "assistant"] * (len(roles) // 2)
        turns[len(roles) // 2] += 1
        lengths.append(len(dialogue.answer.split()))
    assert set(turns) == {2, 3, 4}
    assert 25 < np.mean(lengths) < 32
    assert max(lengths) <= 40


def test_the_tokenizer_knows_every_word_and_marks_what_the_assistant_says(by_split):
    tokenizer = make_tokenizer()
    assert 200 <= len(tokenizer) <= 400
    for dialogue in (*by_split["train"][:50], *by_split["test"][:50]):
        ids, said = token_ids(tokenizer, dialogue)
        whole = tokenizer.apply_chat_template(dialogue.messages, tokenize=True, return_dict=True)["input_ids"]
        prompt = tokenizer.apply_chat_template(
            dialogue.prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        assert ids == whole
        assert len(ids) <= 200
        assert ids[: len(prompt)] == prompt
        assert all(said[len(prompt) :])
        assert tokenizer.decode(ids[len(prompt) : -1]) == dialogue.answer
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in ids
        contents = [m["content"] for m in dialogue.messages if m["role"] == "assistant"]
        assert tokenizer.decode(np.array(ids)[said]) == " <eos> ".join([*contents, ""]).strip()


def test_splits_share_no_rules_no_phrasing_and_no_animal(by_split):
    def rules(dialogue):
        return dialogue.messages[0]["content"].split(" ", 3)[3]

    def animals(dialogue):
        """Each animal, a name with all that is told of it, in the order of the words' groups."""
        groups = list(words.ANIMAL.values())
        text = dialogue.messages[1]["content"].split()
        _, second = dict.fromkeys(word for word in text if word in words.NAMES)
        halves = text[: text.index(second)], text[text.index(second) :]
        return [tuple(next(word for word in half if word in group) for group in groups) for half in halves]

    def phrasing(dialogue):
        gaps = (words.NAMES, words.THINGS, words.NUMBERS, words.COUNTED)
        text = dialogue.prompt[-1]["content"].split()
        return " ".join(word for word in text if not any(word in group for group in gaps))

    for look in (lambda d: [rules(d)], animals, lambda d: [phrasing(d)]):
        seen = {split: {x for d in by_split[split] for x in look(d)} for split in SPLITS}
        assert all(len(values) > 5 for values in seen.values())
        assert not seen["train"] & seen["valid"]
        assert not seen["train"] & seen["test"]
        assert not seen["valid"] & seen["test"]


def test_what_is_wanted_was_told(by_split):
    for dialogue in by_split["test"]:
        told = {
            word for m in dialogue.prompt if m["role"] in ("system", "user") for word in m["content"].split()
        }
        for fact in dialogue.wanted.facts:
            for word in fact:
                assert word in told or word in words.NUMBERS or word == "older"
        assert {dialogue.wanted.beginning, dialogue.wanted.ending} <= told


def test_arithmetic_is_right(by_split):
    seen = set()
    for dialogue in by_split["train"]:
        for fact in dialogue.wanted.facts:
            if len(fact) == 3 and all(word in words.NUMBERS for word in fact):
                a, b, c = map(int, fact)
                assert c in (a + b, a - b)
                seen.add(c == a + b)
    assert seen == {True, False}


def test_answers_slip_and_lapse_as_often_as_they_are_said_to():
    """Of what a good answer has, the drawn ones have most: the likeliest word is the right one."""
    made = dialogues(600, 5, "train")
    endings = np.mean([d.answer.split()[-1] == d.wanted.ending for d in made])
    assert 0.95 < endings < 1
    marks = [d.answer.count(d.wanted.markers[0]) > 0 for d in made]
    assert 0.95 < np.mean(marks) < 1
    tone = [
        ("is from" in d.answer) == (d.messages[0]["content"].startswith("be brief"))
        for d in made
        if ("is from" in d.answer) != ("lives in" in d.answer)
    ]
    assert 0.75 < np.mean(tone) < 0.95
