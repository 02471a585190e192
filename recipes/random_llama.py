"""A Llama of random weights that reads characters: to try out what needs any language model at all."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def char_tokenizer(spaced: bool = False) -> PreTrainedTokenizerFast:
    """Each printable ASCII character is a token, and so is the end of a line.

    Args:
        spaced: a character with a space in front is a token of its own, as in GPT-2: "1 1 1" are three.
    """
    characters = ["\n", *(chr(code) for code in range(32, 127))]
    if spaced:
        characters += [f" {character}" for character in characters[1:]]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[\s\S]" if spaced else r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def random_llama(
    tokenizer: PreTrainedTokenizerFast,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    std: float = 0.1,
    vocabulary: int | None = None,
    seed: int = 0,
) -> LlamaForCausalLM:
    """One of weights N(0, std^2), in eval mode.

    Args:
        tokenizer: whose tokens it knows.
        width, layers, heads: its size; its MLP is three times as wide.
        std: of weights; larger ones make attention sharper.
        vocabulary: its size, at least the tokenizer's, which it is if None.
        seed: of the weights.
    """
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=8192,
        initializer_range=std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
