"""Sampling completions from a mixture of teacher and student, token by token (MiniLLM eq. 4)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

METHODS = ("coin_flip", "mixture")


@torch.no_grad()
def sample_mixture(
    student: nn.Module | None,
    teacher: nn.Module | None,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    alpha: float,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    temperature: float = 1.0,
    method: str = "coin_flip",
    coins: torch.Generator | None = None,
    coin_groups: Tensor | None = None,
    vocab_size: int | None = None,
    synced: Callable[[bool], bool] | None = None,
    teacher_reads_all: bool = False,
) -> Tensor:
    """Draw y_t ~ alpha p(. | x, y_<t) + (1 - alpha) q(. | x, y_<t), p the teacher and q the student.

    Both methods draw from this law, without an approximation:

    - ``"mixture"`` runs both models at every position and draws from the mixture of their probabilities.
    - ``"coin_flip"`` flips a coin at every position, and one model alone emits the token: the teacher with
      probability alpha. A model whose turn it is first reads, in one forward, all tokens it has not read
      yet. That is one forward a position instead of two, a share alpha of them the teacher's.

    The rows of a call share its coins, so that all are in step. Coins are independent of each other and of
    the tokens: each row has the law above, and a mean over rows is unbiased. But rows with the same coins are
    not independent of each other. An error estimate must count coins; and a product of two rows, as of one
    row's score with a baseline or a whitening made from the others, has another mean than with independent
    rows, however many rows there are. Where that matters use ``"mixture"``, whose rows are independent, or
    ``coin_groups``: rows of different groups are independent. The groups go on together, in one batch; where
    their coins differ, both models are run.

    The models are run as they are: put them in eval mode, with gradient checkpointing off. Tokens are drawn
    from torch's global generator of the device, in float32 or the logits' own wider type.

    Args:
        student: q, a causal language model of transformers, bare or wrapped (PEFT, DDP, FSDP, compiled).
            May be ``None`` if alpha = 1: it is not run.
        teacher: p, with the same tokens. May be ``None`` if alpha = 0.
        input_ids: prompts, padded on the left, on the models' device. Shape: ``(B, P)``, int64.
        attention_mask: 1 on the tokens of the prompts, 0 on padding. Shape: ``(B, P)``.
        alpha: the teacher's share, in [0, 1].
        max_new_tokens: the longest completion, at least 1.
        eos_token_ids: each of them ends a completion. May be empty.
        pad_token_id: what stands after the end of a completion.
        temperature: divides the logits of both models, > 0.
        method: ``"coin_flip"`` or ``"mixture"``.
        coins: a CPU generator of the coins, which each ``"coin_flip"`` call with 0 < alpha < 1 advances by
            ``max_new_tokens`` flips for each group, however long the completions get. By default torch's
            global generator.
        coin_groups: the number, from 0, of the group whose coins each row goes by. By default all go by the
            same. Shape: ``(B,)``, int64.
        vocab_size: draw from the first ids only, for models whose vocabularies are padded to different
            sizes. By default the models' vocabularies must be equal.
        synced: given whether this process still goes on, says whether any process does. Models whose
            forward talks to other processes (FSDP, ZeRO-3, DDP with buffers) need it, and ``coins`` in the
            same state and as many groups on each process, so that all run the same model at the same time.
        teacher_reads_all: let the teacher read all tokens but the last, also where no coin asks for it. For
            hooks that keep what it makes of them.

    Returns:
        The completions, with their EOS token and ``pad_token_id`` after it. Shape: ``(B, T)``, int64, where
        T <= ``max_new_tokens`` is the number of positions until all had ended.

    Raises:
        ValueError: an argument is out of range, the padding is not on the left, the vocabularies differ, or
            prompt and completion do not fit the model.
        RuntimeError: a model returned no KV cache.
        FloatingPointError: a model's logits are NaN or infinite. With ``synced`` it is raised at the end, so
            that no process leaves the others waiting.
    """
    _check_settings(alpha, max_new_tokens, temperature, method)
    shares = {"student": 1 - alpha, "teacher": alpha}
    models = {"student": student, "teacher": teacher}
    readers = {name: _Reader(name, models[name]) for name, share in shares.items() if share > 0}
    _check_prompts(input_ids, attention_mask)
    _check_lengths(readers, attention_mask, max_new_tokens)
    vocab = _common_vocabulary(readers, vocab_size)
    _check_special_tokens(eos_token_ids, pad_token_id, vocab, readers)

    rows, prompt = input_ids.shape
    device = input_ids.device
    if coin_groups is None:
        coin_groups = torch.zeros(rows, dtype=torch.int64)
    if coin_groups.shape != (rows,):
        raise ValueError(f"coin_groups must have the shape ({rows},), got {tuple(coin_groups.shape)}")
    groups = int(coin_groups.max()) + 1
    flips = [_flip(alpha, max_new_tokens, coins) for _ in range(groups)] if method == "coin_flip" else []
    ids = torch.full((rows, prompt + max_new_tokens), pad_token_id, dtype=torch.int64, device=device)
    ids[:, :prompt] = input_ids
    mask = torch.zeros_like(ids)
    mask[:, :prompt] = attention_mask
    eos = torch.tensor(eos_token_ids, dtype=torch.int64, device=device)
    done = torch.zeros(rows, dtype=torch.bool, device=device)  # (B,)
    failures: list[FloatingPointError] = []

    def probabilities(name: str, t: int) -> Tensor:
        now = prompt + t
        logits = readers[name].next_logits(ids[:, :now], mask[:, :now])[:, :vocab]  # (B, V)
        # In float32, or in float64 if the logits are.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if failure := _not_finite(logits, name, t):
            if synced is None:
                raise failure
            failures.append(failure)
            logits = torch.zeros_like(logits)
        return torch.softmax(logits / temperature, -1)

    for t in range(max_new_tokens):
        if method == "coin_flip":
            turns = [flip[t] for flip in flips]  # of each group, whether it is the teacher's
            of = {name: probabilities(name, t) for name in readers if (name == "teacher") in turns}
            probs = next(iter(of.values()))  # (B, V)
            if len(of) == 2:
                teachers = torch.tensor(turns)[coin_groups].to(device)  # (B,)
                probs = torch.where(teachers.unsqueeze(1), of["teacher"], of["student"])
        else:
            probs = torch.stack([shares[name] * probabilities(name, t) for name in readers]).sum(0)  # (B, V)
        ids[:, prompt + t] = torch.where(done, pad_token_id, _draw(probs))
        mask[:, prompt + t] = ~done
        done |= torch.isin(ids[:, prompt + t], eos)
        going = not bool(done.all())
        if synced is not None:
            going = synced(going)
        if not going:
            break
    now = prompt + t
    if teacher_reads_all and "teacher" in readers and readers["teacher"].read < now:
        readers["teacher"].next_logits(ids[:, :now], mask[:, :now])
    if failures:
        raise failures[0]
    return ids[:, prompt : prompt + t + 1]


class _Reader:
    """A model with its KV cache, and how much of the sequences it has read."""

    def __init__(self, name: str, model: nn.Module | None) -> None:
        if model is None:
            raise ValueError(f"the {name} is None, but this alpha gives it a share of the tokens")
        inner = _innermost(model)
        accepted = inspect.signature(inner.forward).parameters
        self.name = name
        self.model = model
        self.config: Any = inner.config.get_text_config()
        self.takes_positions = "position_ids" in accepted
        self.last_only: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.cache: Any = None
        self.read = 0

    def next_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Read what is new of ``ids`` (B, n), whose mask is (B, n); the logits of the next token (B, V)."""
        positions = {}
        if self.takes_positions:
            # Absolute positions count the tokens, not the padding; transformers' default does otherwise.
            positions["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, self.read :]
        out = self.model(
            input_ids=ids[:, self.read :],
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **positions,
            **self.last_only,
        )
        self.read = ids.shape[1]
        self.cache = getattr(out, "past_key_values", None)
        # A layer under gradient checkpointing leaves the cache empty, and says so in a warning only.
        if self.cache is None or self.cache.get_seq_length() != self.read:
            raise RuntimeError(
                f"the {self.name} returned no KV cache though use_cache=True. Gradient checkpointing in "
                "training mode does this: call model.eval(), or disable it, before sampling. Models without "
                "a KV cache (state-space models) are not supported."
            )
        return out.logits[:, -1]


def _draw(probs: Tensor) -> Tensor:
    """A token of each row by inversion of its distribution function: (B, V) -> (B,).

    It takes one random number a row, where ``torch.multinomial`` takes one a token of the vocabulary and on a
    CPU costs more than a small model. In float64, since in float32 rare tokens would be lost in the sums.
    """
    dtype = torch.float32 if probs.device.type == "mps" else torch.float64  # MPS has no float64
    below = probs.cumsum(1, dtype=dtype)  # (B, V)
    u = torch.rand(len(probs), 1, dtype=dtype, device=probs.device) * below[:, -1:]
    # Right of equals, so that a token of probability 0 is never drawn; u is less than the total.
    return torch.searchsorted(below, u, right=True).squeeze(1)


def _flip(alpha: float, n: int, coins: torch.Generator | None) -> list[bool]:
    """Whether the teacher emits, for n positions."""
    if alpha in (0, 1):
        return [bool(alpha)] * n
    return (torch.rand(n, generator=coins, dtype=torch.float64) < alpha).tolist()


def _innermost(model: Any) -> Any:
    """The transformers model inside of PEFT's, DDP's and torch.compile's wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def _check_settings(alpha: float, max_new_tokens: int, temperature: float, method: str) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the teacher's share of the tokens, in [0, 1], got {alpha}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _not_finite(logits: Tensor, name: str, t: int) -> FloatingPointError | None:
    finite = torch.isfinite(logits.sum(1))  # (B,); one NaN or infinity spoils the sum
    if bool(finite.all()):
        return None
    return FloatingPointError(
        f"the {name}'s logits are NaN or infinite at position {t} of the completions, in rows "
        f"{(~finite).nonzero().flatten().tolist()[:8]} of {len(finite)}: its weights are not finite, or its "
        "dtype overflows"
    )


def _check_prompts(input_ids: Tensor, attention_mask: Tensor) -> None:
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape or 0 in input_ids.shape:
        raise ValueError(
            "input_ids and attention_mask must both have the shape (batch, prompt length), got "
            f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
        )
    if not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a prompt ends with padding, or is empty: pad on the left (tokenizer.padding_side = 'left') and "
            "drop rows without a token"
        )
    if bool((attention_mask[:, 1:] < attention_mask[:, :-1]).any()):
        raise ValueError(
            "attention_mask has a 0 after a 1: pad on the left (tokenizer.padding_side = 'left')"
        )


def _check_lengths(readers: dict[str, _Reader], attention_mask: Tensor, max_new_tokens: int) -> None:
    longest = int(attention_mask.sum(1).max())
    for name, reader in readers.items():
        fits = getattr(reader.config, "max_position_embeddings", None)
        if fits is not None and longest + max_new_tokens > fits:
            raise ValueError(
                f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but the "
                f"{name} has {fits} positions: truncate prompts to {max(fits - max_new_tokens, 0)} tokens or "
                "lower max_new_tokens"
            )


def _common_vocabulary(readers: dict[str, _Reader], vocab_size: int | None) -> int:
    sizes = {name: reader.config.vocab_size for name, reader in readers.items()}
    smallest = min(sizes.values())
    if vocab_size is None:
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"the vocabularies differ: {sizes}. If the tokenizers are the same and one is padded, pass "
                "vocab_size=len(tokenizer); models with different tokenizers cannot be mixed"
            )
        return smallest
    if not 1 <= vocab_size <= smallest:
        raise ValueError(f"vocab_size must be in 1..{smallest}, which both models have, got {vocab_size}")
    return vocab_size


def _check_special_tokens(eos: list[int], pad: int, vocab: int, readers: dict[str, _Reader]) -> None:
    if not all(0 <= token < vocab for token in eos):
        raise ValueError(f"eos_token_ids must be in 0..{vocab - 1}, got {eos}")
    embedded = min(reader.config.vocab_size for reader in readers.values())
    if not 0 <= pad < embedded:
        raise ValueError(f"pad_token_id must be in 0..{embedded - 1}, which the models can read, got {pad}")
