"""The report card: one call, a file of figures and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...evaluation import Judge, SequenceDivergence, Verdict, compare, sequence_divergence
from ...evaluation.estimates import Estimate, mean_over
from ...evaluation.inputs import bare_model, check_prompts, encode_prompts
from ..layers import cached_weights
from ..replies import end_tokens, greedy_replies
from .attribution import FlipAttribution, check_one_cache, flip_attribution
from .flips import FlipRates, teacher_forced_flips
from .perplexity import Perplexity, perplexity
from .picture import draw
from .replies import ReplyAgreement, compare_replies, label_violations


@dataclass(frozen=True)
class ReportCard:
    """What :func:`report_card` found; parts that were left out are None."""

    settings: dict[str, Any]  #: of the call, and the versions of the libraries
    replies: ReplyAgreement  #: greedy replies of both models
    identical_text: Estimate  #: share of replies of the same text, without special tokens
    label_violation: Estimate  #: of diverging pairs, those whose chosen reply is the less likely
    flips: FlipRates  #: at the prefixes of the teacher's replies
    attribution: FlipAttribution | None  #: of the flips of the first prompts
    divergence: SequenceDivergence | None  #: between the laws of whole replies; the policy is the student
    verdict: Verdict | None  #: of the judge, on the policy's replies against the teacher's
    perplexity: Perplexity | None  #: of the given texts

    def figures(self) -> dict[str, float]:
        """
        Flat for a log or a table: each number by its path, ``replies/identical``, and each standard error
        with ``_se`` behind it. NaN is what is not defined.
        """
        parts = {name: part for name, part in asdict(self).items() if name != "settings"}
        return dict(_flat("", parts))

    def save(self, directory: str | Path) -> None:
        """
        Write ``report_card.json`` and ``report_card.png``.

        Raises:
            ImportError: matplotlib is not installed, which the picture needs; the figures are written.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(asdict(self)), indent=2, allow_nan=False)
        (folder / "report_card.json").write_text(text + "\n")
        draw(self, folder / "report_card.png")


def report_card(
    policy: nn.Module,
    teacher: nn.Module,
    processing_class: Any,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int,
    judge: Judge | None = None,
    texts: Sequence[str] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    samples_per_prompt: int = 1,
    attribution_prompts: int = 64,
    vocab_size: int | None = None,
) -> ReportCard:
    """
    Compare a policy with its full-precision teacher on held-out prompts.

    The models' modes and the random state are left as they were. A reply ends at the EOS tokens of either
    model's generation config and of the tokenizer.

    Args:
        policy: a transformers causal language model, quantized or not.
        teacher: another over the same vocabulary; it may be on another device.
        processing_class: the tokenizer of both, or a processor that holds one.
        prompts: all strings, or all conversations (lists of messages).
        max_new_tokens: where replies are cut that have not ended.
        judge: compares the replies' texts, see :data:`~extensions.trl.evaluation.Judge`.
        texts: what to take the perplexity of.
        batch_size: sequences generated or read together.
        seed: of the sampled replies and of the bootstrap; greedy replies need none.
        samples_per_prompt: replies sampled from each model for the divergences; 0 leaves these out.
        attribution_prompts: so many of the first prompts have their flips attributed, token by token and
            four times over; 0 leaves that out.
        vocab_size: compare the models over the first ids only, for vocabularies padded to different sizes.

    Raises:
        ValueError: no prompts, conversations without a chat template, prompts that are empty or too long,
            different vocabularies, architectures that allow no attribution, or a judge that does not judge.
    """
    prompts = list(prompts)
    ids = encode_prompts(processing_class, prompts)
    for model in (policy, teacher):
        check_prompts(model, ids, max_new_tokens)
    check_one_vocabulary(policy, teacher, vocab_size)
    if attribution_prompts:
        check_one_cache(policy, teacher)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    ends = sorted({*end_tokens(policy, tokenizer), *end_tokens(teacher, tokenizer)})
    reading: dict[str, Any] = {"batch_size": batch_size, "vocab_size": vocab_size}
    replying: dict[str, Any] = {**reading, "max_new_tokens": max_new_tokens}

    with cached_weights(policy), cached_weights(teacher):
        quality = None
        if texts is not None:
            quality = perplexity(policy, teacher, processing_class, texts, batch_size=batch_size)
        chosen = greedy_replies(teacher, ids, ends=ends, description="Teacher's replies", **replying)
        rejected = greedy_replies(policy, ids, ends=ends, description="Policy's replies", **replying)
        texts_of = partial(processing_class.batch_decode, skip_special_tokens=True)
        said, meant = texts_of(rejected), texts_of(chosen)
        verdict = compare(judge, prompts, said, meant, seed=seed) if judge is not None else None
        flips = teacher_forced_flips(policy, teacher, ids, chosen, **reading)
        violation = label_violations(teacher, ids, rejected, chosen, batch_size=batch_size)

        some, attribution = slice(attribution_prompts), None
        if attribution_prompts:
            attribution = flip_attribution(policy, teacher, ids[some], chosen[some], **reading)
        divergence = None
        if samples_per_prompt:
            sampling: dict[str, Any] = {**replying, "samples_per_prompt": samples_per_prompt, "seed": seed}
            divergence = sequence_divergence(policy, teacher, ids, eos_token_id=ends, **sampling)

    settings = {
        "prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "eos_token_id": ends,
        "seed": seed,
        "samples_per_prompt": samples_per_prompt,
        "batch_size": batch_size,
        "vocab_size": vocab_size,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    return ReportCard(
        settings=settings,
        replies=compare_replies(rejected, chosen, max_new_tokens),
        identical_text=mean_over(torch.tensor([a == b for a, b in zip(said, meant, strict=True)]).double()),
        label_violation=violation,
        flips=flips,
        attribution=attribution,
        divergence=divergence,
        verdict=verdict,
        perplexity=quality,
    )


def check_one_vocabulary(policy: nn.Module, teacher: nn.Module, vocab_size: int | None) -> None:
    """
    Refuse models that choose among different numbers of tokens.

    Raises:
        ValueError: they do, or have fewer than ``vocab_size``.
    """
    sizes = [bare_model(model).config.get_text_config().vocab_size for model in (policy, teacher)]
    if vocab_size is None and sizes[0] != sizes[1]:
        raise ValueError(
            f"The policy has a vocabulary of {sizes[0]} tokens and the teacher of {sizes[1]}; a report card "
            "compares them token by token. If only padding differs, pass vocab_size=len(tokenizer)."
        )
    if vocab_size is not None and vocab_size > min(sizes):
        raise ValueError(f"vocab_size is {vocab_size}, but a model has {min(sizes)} tokens only.")


def _flat(path: str, part: Any) -> Iterator[tuple[str, float]]:
    """Numbers by their path; lists, which hold a number of each prompt or bin, are left out."""
    if isinstance(part, Mapping):
        if part.keys() == {"value", "standard_error"}:
            yield path, part["value"]
            yield f"{path}_se", part["standard_error"]
            return
        for name, inner in part.items():
            yield from _flat(f"{path}/{name}" if path else str(name), inner)
    elif isinstance(part, int | float):
        yield path, part


def _plain(part: Any) -> Any:
    """What JSON can say: no NaN and no infinity, which become null, and keys that are strings."""
    if isinstance(part, Mapping):
        return {str(name): _plain(inner) for name, inner in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(inner) for inner in part]
    return None if isinstance(part, float) and not math.isfinite(part) else part
