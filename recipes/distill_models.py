"""Teacher and student: made from scratch, or loaded from the hub or from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets.exceptions import DatasetsError
from omegaconf import DictConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .instructions import make_tokenizer

MAX_LENGTH = 128  # of what models from scratch read


@contextmanager
def readable(key: str, path: str, what: str) -> Iterator[None]:
    """What Hugging Face cannot load from ``path`` is said in one line, with the setting's name."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, DatasetsError) as error:
        where = (
            "this folder or file" if Path(path).exists() else "no such path here, and nothing from the hub"
        )
        raise ValueError(f"{key}={path}: {what} could not be read: {where} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def load_tokenizer(cfg: DictConfig) -> PreTrainedTokenizerBase:
    """The student's, which pads on the left; that of the instructions for models from scratch."""
    if cfg.model.student is None or cfg.data.name == "instructions":
        return make_tokenizer()
    with readable("model.student", cfg.model.student, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(cfg.model.student, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(cfg: DictConfig, who: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The teacher or the student as a run begins with it; weights from scratch are those of the run's seed.

    Llama's architecture for what is made from scratch: its positions are relative, so that trainers that pass
    no ``position_ids`` along with padding on the left are right about it.
    """
    path = cfg.model[who]
    if path is not None:
        dtype = torch.float32 if who == "student" else getattr(torch, cfg.model.teacher_dtype)
        with readable(f"model.{who}", path, "a checkpoint"):
            return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    size = cfg.model[f"{who}_size"]
    torch.manual_seed(cfg.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.width,
            intermediate_size=4 * size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def reads_padding(model: PreTrainedModel) -> bool:
    """Whether padding on the left changes what the model says if it is told no positions, as GPT-2's does."""
    ids = torch.zeros(1, 6, dtype=torch.long, device=model.device)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1]], device=model.device)
    training = model.training
    model.eval()  # no dropout
    padded = model(input_ids=ids, attention_mask=mask).logits[0, 3:].float()
    alone = model(input_ids=ids[:, 3:]).logits[0].float()
    model.train(training)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool((padded - alone).norm() > tolerance * alone.norm())


def reload(folder: Path) -> PreTrainedModel:
    """What a phase has saved."""
    return AutoModelForCausalLM.from_pretrained(folder)
