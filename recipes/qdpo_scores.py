"""How often a quantized model says what its full-precision self says, and what its replies are worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from extensions.trl.evaluation import compare, completion_log_probs, score_completions
from extensions.trl.evaluation.inputs import encode_prompts
from extensions.trl.qdpo.layers import cached_weights
from extensions.trl.qdpo.replies import end_tokens, greedy_replies, hash_of, key
from extensions.trl.qdpo.report import compare_replies, teacher_forced_flips

from .qdpo_run import Run


def evaluate(run: Run, policy: nn.Module) -> dict[str, Any]:
    """
    Figures on the prompts that were held out.

    Shares are in 0 ... 1, divergences in nats a token.

    Returns:
        agreement: share of prompts to which both models give the same greedy reply. agreement_at: the same of
            a reply's first k tokens. agreed_tokens: mean number of tokens before the first that differs.
            flip_rate and forward_kl, KL(full precision || policy): at the prefixes of the full-precision
            replies. reverse_kl: KL(policy || full precision), at the prefixes of the policy's greedy replies.
            length: of a reply, in tokens. Where there is a rubric also rubric: what replies are worth;
            win, tie, lose, win_rate, win_low, win_high: judged against the full-precision replies; and
            perplexity: of the answers in the data.
    """
    cfg, tokenizer, data = run.cfg, run.tokenizer, run.data
    size = cfg.evaluation_batch_size
    prompts = encode_prompts(tokenizer, data.report)
    with cached_weights(policy):
        chosen = _replies(run, run.teacher, prompts, "Full-precision replies to report on")
        replies = _replies(run, policy, prompts, "Replies to report on")
        agreement = compare_replies(replies, chosen, cfg.data.max_new_tokens)
        flips = teacher_forced_flips(policy, run.teacher, prompts, chosen, batch_size=size)
        own = score_completions(policy, run.teacher, prompts, replies, batch_size=size)
        figures: dict[str, Any] = {
            "agreement": agreement.identical.value,
            "agreement_at": {str(k): share.value for k, share in agreement.prefix_agreement.items()},
            "agreed_tokens": agreement.agreed_tokens.value,
            "flip_rate": flips.rate.value,
            "flips_by_margin": {f"{b.low:g}": [b.flips, b.tokens] for b in flips.by_margin},
            "forward_kl": flips.forward_kl_per_token.value,
            "reverse_kl": (own.reverse_kl.sum() / own.mask.sum()).item(),
            "length": agreement.policy_length.value,
        }
        if data.dialogues is None or data.judge is None:
            return figures
        said, meant = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (replies, chosen))
        verdict = compare(data.judge, data.report, said, meant, seed=0)
        answers = tokenizer([dialogue.answer for dialogue in data.dialogues])["input_ids"]
        answers = [[*ids, tokenizer.eos_token_id] for ids in answers]
        log_probs = completion_log_probs(policy, prompts, answers, batch_size=size)
    return figures | {
        "rubric": data.mean_rubric(said),
        "win": verdict.win,
        "tie": verdict.tie,
        "lose": verdict.lose,
        "win_rate": verdict.win_rate,
        "win_low": verdict.low,
        "win_high": verdict.high,
        "perplexity": math.exp(-log_probs.sum().item() / sum(map(len, answers))),
    }


def recovered(agreement: float, before: float) -> float:
    """The share that training gave back of the greedy agreement that quantization had lost; NaN if none."""
    return (agreement - before) / (1 - before) if before < 1 else float("nan")


def _replies(run: Run, model: nn.Module, prompts: list[list[int]], description: str) -> list[list[int]]:
    """Greedy replies; the full-precision model's are kept for runs that share a folder of pairs."""
    new_tokens, ends = run.cfg.data.max_new_tokens, end_tokens(model, run.tokenizer)
    folder = None
    if model is run.teacher:
        made_of = key(hash_of(model.named_parameters()), prompts, new_tokens, ends)
        folder = Path(run.args.pairs_dir or "") / f"report-{made_of}"
    return greedy_replies(
        model,
        prompts,
        max_new_tokens=new_tokens,
        batch_size=run.cfg.evaluation_batch_size,
        ends=ends,
        folder=folder,
        description=description,
    )
