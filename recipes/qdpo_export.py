"""The trained low-bit model as a file, and whether what is read from it is the same model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from extensions.trl.evaluation.inputs import encode_prompts, evaluating, forward_arguments, padded
from extensions.trl.qdpo.export import export_packed
from extensions.trl.qdpo.layers import cached_weights

from .qdpo_run import Run

#: prompts on which the two are compared
COMPARED = 16


def export(run: Run, policy: PreTrainedModel) -> dict[str, Any]:
    """
    Write ``packed/`` into the run's folder and read it back.

    Returns:
        bytes: of its weights' file. equal: whether all logits of some prompts are the same to the last bit.
    """
    folder = run.folder.path / "packed"
    export_packed(policy, run.tokenizer, folder)
    reloaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    reloaded.to(run.device)
    ids, mask = padded(encode_prompts(run.tokenizer, run.data.report[:COMPARED]), "left")
    with evaluating(policy, reloaded), cached_weights(policy):
        arguments = forward_arguments(policy, ids, mask)
        equal = torch.equal(policy(**arguments).logits, reloaded(**arguments).logits)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {"bytes": size, "equal": equal}
