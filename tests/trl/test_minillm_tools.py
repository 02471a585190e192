"""An answer may call tools: what they return is read, and neither learned from nor rewarded."""

from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset

from extensions.trl.minillm import mixture_trainer as module

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
END = "<|im_end|>"


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and the template of a family whose tool calls TRL can read."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token) for token in ("<|endoftext|>", "<|im_start|>", END)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|endoftext|>", eos_token=END, padding_side="left"
    )
    made.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    return made


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("positions", [2048, 1000])
def test_what_a_tool_returns_is_read_but_not_learned(
    tmp_path, tiny, tokenizer, monkeypatch, alpha, positions
):
    size = {"vocabulary": len(tokenizer), "max_position_embeddings": positions, "eos_token_id": 258}
    prompts = [[{"role": "user", "content": f"2 + {i}"}] for i in range(4)]
    trainer = tiny.trainer(
        tmp_path,
        tiny.qwen3(0, **size),
        tiny.qwen3(1, **size),
        Dataset.from_dict({"prompt": prompts}),
        tokenizer,
        others={"tools": [add]},
        steps_per_generation=1,
        num_iterations=1,
        max_steps=1,
        max_completion_length=200,
        teacher_mix_alpha=alpha,
        chat_template_kwargs={"enable_thinking": False},
    )
    turn = trainer._generate_single_turn
    asked, coins = [], []
    sample = module.sample_mixture

    def sampled(*args, **kwargs):
        coins.append(kwargs["coins"].get_state())
        return sample(*args, **kwargs)

    def first_calls(prompt_ids, *rest, **others):
        """All but the last prompt are answered by a call at first."""
        asked.append(prompt_ids)
        drawn = turn(prompt_ids, *rest, **others)
        if len(asked) == 1:
            call = tokenizer(CALL + END)["input_ids"]
            return [call] * 3 + [tokenizer("five" + END)["input_ids"]]
        return drawn

    monkeypatch.setattr(module, "sample_mixture", sampled)
    trainer._generate_single_turn = first_calls
    seen = []
    loss = trainer._compute_loss
    trainer._compute_loss = lambda *args: seen.append(args[1]) or loss(*args)
    trainer.train()

    assert [len(batch) for batch in asked] == [4, 3]
    read = tokenizer.decode(asked[1][0])
    assert CALL in read
    assert "<tool_response>\n5\n</tool_response>" in read
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["tools/call_frequency"] == 0.75
    assert entry["tools/failure_frequency"] == 0.0

    (batch,) = seen
    for ids, mask, tool, gains, old in zip(
        *(batch[k] for k in ("completion_ids", "completion_mask", "tool_mask", "advantages", "old_log_q")),
        strict=True,
    ):
        returned = tokenizer.decode(ids[(mask != 0) & (tool == 0)])
        written = tokenizer.decode(ids[(mask != 0) & (tool != 0)])
        assert ("<tool_response>" in returned) == (CALL in written)
        assert "<tool_response>\n5" not in written
        silent = (mask * tool) == 0
        assert not gains[silent].any()
        assert not old[silent].any()
    if alpha:
        assert len(coins) == 2
        assert not torch.equal(*coins)  # the second turn's coins are its own
