"""Tiny models and tokenizers, made in process."""

import os

import pytest
import torch

# Before the first import of huggingface_hub, which reads them then.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DIGITS = list("0123456789")
WORDS = [
    *("How", "many", "ones", "are", "there", "in", "What", "is", "the", "first", "last", "digit", "answer"),
    *(",", ".", ":", "?", "+", "-", ";", "a", "b", "c", "d", "car", "dog", "Look", "carefully"),
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small are slower on many threads, and sums over threads differ in their last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fast(backend):
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(scope="session")
def word_tokenizer():
    """Each digit, word and mark is a token; text begins with <s>."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *DIGITS, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\d|[^\w\s]"), "isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return fast(backend)


@pytest.fixture(scope="session")
def char_tokenizer():
    """Each printable ASCII character is a token, white space too."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = [chr(i) for i in range(32, 127)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return fast(backend)


@pytest.fixture(scope="session")
def merging_tokenizer():
    """Byte-pair encoding: "111", "111," and ": 7" are one token each, most else is single characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = [chr(i) for i in range(32, 127)]
    merges = [("1", "1"), ("11", "1"), ("111", ","), (" ", "7"), (":", " 7")]
    tokens = [*SPECIAL, *characters, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("1{1,3},?"), "isolated")
    backend.decoder = decoders.Fuse()
    return fast(backend)


def tiny_llama(vocabulary, seed=0, layers=2, scale=0.3, **changed):
    """A random Llama; ``scale`` large enough for attention that is not flat."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=scale,
        **changed,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def llama(word_tokenizer):
    """The adapter of a random Llama of two layers whose tokens are words and digits."""
    from extensions.glasses import HFCausalLM

    return HFCausalLM(tiny_llama(len(word_tokenizer)), word_tokenizer)


@pytest.fixture(scope="session")
def make_llama():
    """`tiny_llama`, for other sizes and tokenizers."""
    return tiny_llama
