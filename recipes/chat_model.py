"""A small chat model, trained from scratch on the dialogues of :mod:`.dialogues`.

model, tokenizer = train_chat_model(Path("runs/chat"), seed=0)   # minutes, once; then it is read from there
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from extensions.trl.evaluation.inputs import padded

from .dialogues import dialogues, make_tokenizer, token_ids
from .run_folder import RunFolder
from .schedules import lr_share

STEPS = 2_000
BATCH_SIZE = 8
LEARNING_RATE = 2e-3
WARMUP = 0.05
WEIGHT_DECAY = 0.1
MAX_LENGTH = 256  # positions of the model
LOOK_EVERY = 100  # steps between two lines of progress, each with a checkpoint
#: dialogues that are batched by length together
POOL = 40 * BATCH_SIZE


def new_chat_model(tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """A Llama of 2.0 M parameters, the weights of which ``seed`` decides.

    Embedding and head are apart, so that the linear layers can be quantized and the head left alone.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    embedding: Any = model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight.mul_(10)
    return model


def train_chat_model(
    folder: Path, seed: int, steps: int = STEPS, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, Tokenizer]:
    """The chat model of a seed and its tokenizer: from ``folder`` if it was trained there, else trained.

    What was interrupted goes on from its last checkpoint to the same weights.

    Args:
        folder: where model and tokenizer are saved as by ``save_pretrained``.
        seed: of the weights and of the dialogues.
        steps: updates.
        device: where it trains and is returned.
    """
    if not (folder / "config.json").exists():
        _train(RunFolder(folder), seed, steps, torch.device(device))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def _train(folder: RunFolder, seed: int, steps: int, device: torch.device) -> None:
    tokenizer = make_tokenizer()
    model: Any = new_chat_model(tokenizer, seed).train()
    model.to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True)

    done, checkpoint = 0, folder.checkpoint()
    if checkpoint is not None:
        saved = torch.load(checkpoint / "state.pt", map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    losses, began = [], time.process_time()
    for step, batch in enumerate(_batches(tokenizer, seed, steps), start=1):
        if step <= done:
            continue
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * lr_share(step, steps, WARMUP, end=0.02)
        loss = answer_loss(model, *(x.to(device) for x in batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if step % LOOK_EVERY == 0 or step == steps:
            mean, losses = torch.stack(losses).mean().item(), []
            seconds = time.process_time() - began
            print(f"chat model: step {step:,} of {steps:,}, loss {mean:.4f}, {seconds:.0f} s", flush=True)
            with folder.new_checkpoint(step) as partial:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, partial / "state.pt")
    tokenizer.save_pretrained(folder.path)
    model.save_pretrained(folder.path)


def _batches(tokenizer: Tokenizer, seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Dialogues about as long as each other: ids, and whether the assistant says them, both (B, L)."""
    generator, left = np.random.default_rng(seed), steps
    for pool in range(-(-steps * BATCH_SIZE // POOL)):
        made = dialogues(POOL, seed=(seed + 1) * 1_000_000 + pool, split="train")
        rows = sorted((token_ids(tokenizer, dialogue) for dialogue in made), key=lambda row: len(row[0]))
        for i in generator.permutation(len(rows) // BATCH_SIZE)[:left]:
            ids, said = zip(*rows[i * BATCH_SIZE : (i + 1) * BATCH_SIZE], strict=True)
            left -= 1
            yield padded(ids, "right")[0], padded(said, "right")[0].bool()


def answer_loss(model: PreTrainedModel, ids: Tensor, said: Tensor) -> Tensor:
    """The mean cross entropy, in nats, of the tokens that the assistant says; both (B, L).

    Padding is on the right, where no token looks, so that there is no mask to tell.
    """
    scores = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, L - 1, V)
    wanted = said[:, 1:]
    return F.cross_entropy(scores[wanted], ids[:, 1:][wanted])
