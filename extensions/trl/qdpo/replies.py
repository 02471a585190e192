"""Greedy replies of a model to many prompts: in batches, shared by the processes, kept shard by shard."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..evaluation import sample_completions
from ..evaluation.inputs import TokenIds
from ..evaluation.sampling import eos_ids
from .layers import cached_weights

logger = logging.getLogger("extensions.trl.qdpo")

#: batches of a shard, which is what is lost at most when generation is interrupted
SHARD = 8


def greedy_replies(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    batch_size: int,
    ends: Sequence[int],
    folder: Path | None = None,
    description: str = "Replies",
    vocab_size: int | None = None,
) -> list[list[int]]:
    """
    The likeliest token at each position, until an end token, which is kept, or ``max_new_tokens``.

    Prompts of similar length are answered together. Each process answers its shards, and all get all replies.

    Args:
        model: a causal language model; a quantized weight is made once for all of it.
        prompts: token ids, unpadded.
        max_new_tokens: where a reply is cut that has not ended.
        batch_size: replies generated together.
        ends: token ids that end a reply.
        folder: where finished shards are kept, and found again. None keeps nothing.
        description: of the progress bar.
        vocab_size: choose among the first ids only, where the vocabulary is padded. All by default.

    Returns:
        Token ids of a reply to each prompt, in the order of the prompts.
    """
    state = PartialState()
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    size = batch_size * SHARD
    shards = [order[start : start + size] for start in range(0, len(order), size)]
    mine = range(state.process_index, len(shards), state.num_processes)
    done: list[tuple[int, list[list[int]]]] = []
    with cached_weights(model):
        for number in tqdm(mine, desc=description, unit="shard", disable=quiet(state)):
            path = None if folder is None else folder / f"{number:05d}.json"
            replies = _read(path)
            if replies is None:
                replies = sample_completions(
                    model,
                    [prompts[i] for i in shards[number]],
                    max_new_tokens,
                    seed=0,  # nothing is drawn
                    temperature=0.0,
                    batch_size=batch_size,
                    eos_token_id=list(ends),
                    vocab_size=vocab_size,
                )
                _write(path, replies)
            done.append((number, replies))
    found: list[list[int]] = [[] for _ in prompts]
    for number, replies in gather_object(done):
        for index, reply in zip(shards[number], replies, strict=True):
            found[index] = reply
    return found


def end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """What ends a reply: the model's end tokens and the tokenizer's, which may be another."""
    ends = eos_ids(model, None)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends.append(tokenizer.eos_token_id)
    return ends


def key(*parts: Any) -> str:
    """A name for what was made from these: equal parts, equal name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A name for what named tensors hold."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def quiet(state: PartialState) -> bool:
    """Whether to show no progress."""
    return not state.is_local_main_process or bool(os.environ.get("TQDM_DISABLE"))


def _read(path: Path | None) -> list[list[int]] | None:
    if path is None or not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError:
        logger.warning(f"{path} is damaged: its replies are made anew.")
        return None


def _write(path: Path | None, replies: list[list[int]]) -> None:
    """Under another name first: a file by the right name is whole."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(replies))
    unfinished.replace(path)
