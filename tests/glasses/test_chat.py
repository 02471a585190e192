"""Questions as turns of a conversation."""

import copy

import pytest

from envs.sequence_tasks import SequenceTask
from extensions.glasses import ChatTask, HFCausalLM, answer_items, compare, retrieval_probe
from extensions.glasses.encoding import encode
from extensions.glasses.remedies import Dilute

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant] "
)


@pytest.fixture
def tokenizer(char_tokenizer):
    tokenizer = copy.deepcopy(char_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_turn(tokenizer):
    task = ChatTask(SequenceTask("copy_last"), tokenizer)
    (turn,) = task.items(6, 1)
    asked = turn.asked
    assert turn.prompt == f"<s>[user] {asked.prompt} [assistant] "
    assert turn.prompt[slice(*turn.payload_span)] == asked.prompt[slice(*asked.payload_span)]
    assert turn.lead == asked.lead.lstrip()
    assert (turn.answer, turn.payload, turn.length) == (asked.answer, asked.payload, 6)
    assert (task.name, task.chance) == ("copy_last", 0.5)


def test_one_bos_alone(word_tokenizer):
    """Of a tokenizer that puts one in front itself."""
    tokenizer = copy.deepcopy(word_tokenizer)
    tokenizer.chat_template = TEMPLATE
    (turn,) = ChatTask(SequenceTask("copy_last"), tokenizer).items(6, 1)
    ids = encode(tokenizer, turn.prompt)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_pairs_differ_in_the_element_that_bears_the_answer(tokenizer):
    task = ChatTask(SequenceTask("copy_first"), tokenizer)
    one, other = task.minimal_pair(task.items(6, 1)[0])
    assert one.answer != other.answer
    assert sum(a != b for a, b in zip(one.prompt, other.prompt, strict=True)) == 1


def test_it_is_a_task_for_all(tokenizer, make_llama):
    model = HFCausalLM(make_llama(len(tokenizer)), tokenizer)
    task = ChatTask(SequenceTask("copy_last"), tokenizer)
    found = compare(model, [task], [Dilute(3)], (4, 8), trials=2, pairs=1)
    answers = answer_items(model, task.items(4, 2))
    assert found.arm("copy_last").margin["float32"][0].item() == pytest.approx(
        answers.margin.mean().item(), abs=1e-4
    )
    recall = ChatTask(SequenceTask("kv_recall"), tokenizer)
    probe = retrieval_probe(model, recall, lengths=(3,), depths=(0.0, 1.0), trials=2, probes=2)
    assert probe.accuracy.shape == (1, 2)


def test_what_is_refused(char_tokenizer, tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        ChatTask(SequenceTask("copy_last"), char_tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(ValueError, match="the chat template changes the prompt"):
        ChatTask(SequenceTask("copy_last"), tokenizer).items(4, 1)
