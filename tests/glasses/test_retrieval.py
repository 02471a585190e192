"""The probe of depths, on a model that remembers the end of a sequence alone."""

import pytest
import torch
from torch import nn

from envs.sequence_tasks import SequenceTask
from extensions.glasses import HFCausalLM, retrieval_probe
from extensions.glasses.encoding import differing
from extensions.glasses.retrieval import needle_share
from extensions.glasses.statistics import wilson


@pytest.fixture
def task():
    return SequenceTask("kv_recall", prompt_style="terse")


@pytest.fixture
def model(make_llama, char_tokenizer):
    return HFCausalLM(make_llama(len(char_tokenizer)), char_tokenizer)


def test_shapes_and_intervals(model, task):
    probe = retrieval_probe(model, task, lengths=(3, 6), depths=(0, 0.5, 1), trials=4, probes=4)
    assert probe.accuracy.shape == probe.margin.shape == probe.needle_share.shape == (2, 3)
    low, high = wilson(probe.accuracy * 4, 4)
    assert torch.equal(probe.low, low)
    assert torch.equal(probe.high, high)
    assert (probe.needle_share > 0).all()
    assert -1 <= probe.margin_follows_share <= 1
    assert len(probe.u_index) == 2


def test_answers_are_those_of_the_items(model, task):
    from extensions.glasses.answers import answer_items

    probe = retrieval_probe(model, task, lengths=(4,), depths=(1.0,), trials=6, sensitivities=0)
    answers = answer_items(model, task.items(4, 6, 1.0))
    assert probe.accuracy.item() == answers.right.double().mean().item()
    assert probe.margin.item() == pytest.approx(answers.margin.mean().item())
    assert probe.needle_share is None
    assert probe.margin_follows_share is None


def test_a_window_forgets_what_lies_before_it(task, char_tokenizer):
    """Of a model whose layer sees a few tokens back, the share of a far needle is exactly 0."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=len(char_tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=12,
    )  # fmt: skip
    model = HFCausalLM(MistralForCausalLM(config).eval(), char_tokenizer)
    near, far = (needle_share(model, task, task.items(12, 1, depth)[0], 4) for depth in (1.0, 0.0))
    assert far == 0
    assert near > 0


def test_tokens_that_differ():
    assert differing([1, 2, 3, 4], [1, 9, 3, 4]) == (1, 2)
    assert differing([1, 2, 2, 4], [1, 2, 4]) == (2, 3)
    assert differing([1, 2, 4], [1, 2, 2, 4]) == (2, 3)
    assert differing([1, 2], [3, 4]) == (0, 2)
    with pytest.raises(ValueError, match="have the same tokens"):
        differing([1, 2], [1, 2])


def test_progress(model, task):
    seen = []
    retrieval_probe(
        model, task, lengths=(2, 3), depths=(0.5,), trials=1, sensitivities=0, progress=seen.append
    )
    assert seen == [2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials must be at least 1"),
        ({"depths": (0, 2)}, "depths must be from 0 to 1"),
        ({"depths": ()}, "depths must be from 0 to 1"),
    ],
)
def test_bad_input(model, task, change, message):
    with pytest.raises(ValueError, match=message):
        retrieval_probe(model, task, **({"lengths": (2,)} | change))


def test_no_tokenizer(make_llama, task):
    model = HFCausalLM(make_llama(128))
    assert isinstance(model.module, nn.Module)
    with pytest.raises(ValueError, match="give the tokenizer"):
        retrieval_probe(model, task, lengths=(2,))
