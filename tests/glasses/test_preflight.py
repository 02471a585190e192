"""Warnings before a long run."""

import math

import pytest
import torch

from extensions.glasses import HFCausalLM, preflight, representation_gap
from extensions.glasses.encoding import encode
from extensions.glasses.preflight import _exchanged, _first_of_text

SHORT = "How many ones are there in 1 0 1 1 ?"


def test_a_short_prompt_is_heard(llama, recwarn):
    found = preflight(llama, [SHORT], "float32")
    assert found.ok
    assert not recwarn.list
    assert found.depth.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert (found.snr == math.inf).all()
    assert (found.gap > 0).all()


def test_figures_are_those_of_the_gap(llama):
    pair = (SHORT, SHORT.replace("1 0", "1 1"))
    found = preflight(llama, [pair], "bfloat16", snr=0)
    a, b = (torch.tensor([encode(llama.tokenizer, text)]) for text in pair)
    report = representation_gap(llama, a, b, layers=[-1], norms=("l1",))
    assert found.snr.item() == report.snr["bfloat16"].item()
    assert found.paired_snr.item() == report.paired_snr["bfloat16"].item()
    assert found.tokens.tolist() == [a.shape[1]]
    assert math.isnan(found.depth.item())


def test_a_prompt_that_drowns_its_tokens(make_llama, word_tokenizer):
    """In a flat model one token among 900 others is less than the rounding of bfloat16."""
    model = HFCausalLM(make_llama(len(word_tokenizer), scale=0.01), word_tokenizer)
    prompt = "How many ones are there in " + "1 " * 900 + "?"
    with pytest.warns(
        UserWarning, match=r"prompt 0, 908 tokens, depth 0.25: one token moves .* run in a wider dtype"
    ):
        found = preflight(model, [prompt], depths=(0.25,))
    assert not found.ok
    assert found.snr.item() < 3
    assert '"warnings"' in found.to_json()


def test_a_pair_with_one_answer(make_llama, word_tokenizer):
    model = HFCausalLM(make_llama(len(word_tokenizer), scale=0.01), word_tokenizer)
    pair = ("What is the first digit in 1 1 1 ?", "What is the last digit in 1 1 1 ?")
    with pytest.warns(UserWarning, match="the next token is the same for both prompts"):
        assert preflight(model, [pair], "float32").argmax_equal.all()


def test_a_token_beyond_the_windows(word_tokenizer):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=len(word_tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    model = HFCausalLM(MistralForCausalLM(config).eval(), word_tokenizer)
    with pytest.warns(UserWarning, match="depth 0: not heard at all at the end: beyond the model's windows"):
        found = preflight(model, [SHORT], "float32", depths=(0.0, 1.0))
    assert found.gap[0] == 0
    assert found.gap[1] > 0


@pytest.mark.parametrize(
    ("prompts", "kind", "message"),
    [
        ([], {}, "at least one prompt"),
        ([SHORT], {"depths": (2,)}, "depths must be from 0 to 1"),
        ([(SHORT, SHORT)], {}, "prompts of pair 0 have the same tokens"),
        ([SHORT], {"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_bad_input(llama, prompts, kind, message):
    with pytest.raises(ValueError, match=message):
        preflight(llama, prompts, **kind)


def test_a_model_that_runs_in_float64_has_no_rounding(llama):
    found = preflight(llama, [SHORT], "float64")
    assert found.dtype == "float64"
    assert found.ok
    assert (found.snr == torch.inf).all()
    assert (found.gap > 0).all()


def test_one_token_cannot_be_exchanged(make_llama, char_tokenizer):
    model = HFCausalLM(make_llama(len(char_tokenizer)), char_tokenizer)
    with pytest.raises(ValueError, match="two different tokens at least"):
        preflight(model, ["aaaa"])


def test_a_dtype_that_overflows(llama):
    with torch.no_grad():
        llama.blocks[0].mlp.down_proj.weight.mul_(3e7)
    with pytest.warns(UserWarning, match="prompt 0, 12 tokens, depth 0.5: overflows in float16: run in a"):
        found = preflight(llama, [SHORT], "float16")
    assert found.overflows.all()
    assert not found.ok
    assert len(found.warnings) == 5
    assert not preflight(llama, [SHORT], "float32").overflows.any()


def test_a_beginning_of_sequence_is_not_exchanged(llama):
    ids = torch.tensor(encode(llama.tokenizer, SHORT))
    assert ids[0] == llama.tokenizer.bos_token_id
    first = _first_of_text(ids.tolist(), llama.tokenizer)
    assert first == 1
    for depth, place in ((0.0, 1), (0.5, 6), (1.0, 11)):
        for seed in range(20):
            changed = _exchanged(ids, first, depth, torch.Generator().manual_seed(seed))
            assert (changed != ids).nonzero().tolist() == [[place]]
            assert changed[place] != llama.tokenizer.bos_token_id


def test_one_text_is_no_list(llama):
    with pytest.raises(ValueError, match=r"prompts must be a list: give \[prompt\] for one"):
        preflight(llama, SHORT)
