"""Causal language models of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .base import Adapter

LEARNED_POSITIONS = ("wpe", "embed_positions", "position_embeddings")


class HFCausalLM(Adapter):
    """A causal language model of transformers as a `SequenceModel`.

    A batch is token ids, ``(B, n)`` int64, or what a tokenizer returns: ``input_ids`` and ``attention_mask``.
    Sequences may be padded on either side; positions count real tokens alone.

    Args:
        model: such as ``AutoModelForCausalLM.from_pretrained(...)``, in eval mode.
        tokenizer: for functions that are given text.

    Raises:
        TypeError: it is an encoder-decoder; it has no list of layers; a PEFT adapter puts learned prompts or
            prefixes in front. State space models are taken, which have no attention to look at.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        name = type(model).__name__
        if not hasattr(model, "get_decoder") or not hasattr(model, "config"):
            raise TypeError(f"HFCausalLM takes a causal language model of transformers, got {name}")
        if getattr(model.config, "is_encoder_decoder", False):
            raise TypeError(f"{name} is an encoder-decoder; HFCausalLM takes decoders alone")
        refuse_learned_prompts(model)
        self.backbone = _decoder(model)
        super().__init__(model, _layers(self.backbone, name))
        self.tokenizer = tokenizer
        #: the most tokens there are positions for, where each has a learned vector; None if any number goes
        self.longest, self._first_position = _learned_positions(self.backbone, model.config)

    def embed(self, batch: Any) -> Tensor:
        """(B, n, d), vectors of tokens; what a model adds for their positions comes later."""
        return self.module.get_input_embeddings()(self.ids(batch))

    def ids(self, batch: Any) -> Tensor:
        """Token ids, (B, n)."""
        ids = batch["input_ids"] if isinstance(batch, Mapping) else batch
        ids = torch.as_tensor(ids, device=self.device)
        if ids.ndim != 2 or ids.is_floating_point() or not ids.shape[1]:
            raise ValueError(
                f"token ids must be integers, (B, n), n of at least 1; got {tuple(ids.shape)}, {ids.dtype}"
            )
        size = self.module.get_input_embeddings().weight.shape[0]
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise ValueError(
                f"token ids must be from 0 to {size - 1}, the model's vocabulary; got {low} to {high}"
            )
        if self.longest is not None and ids.shape[1] > self.longest:
            raise ValueError(
                f"{type(self.module).__name__} has learned positions for {self.longest} tokens, and a "
                f"sequence has {ids.shape[1]}: give shorter ones"
            )
        return ids

    def mask(self, batch: Any) -> Tensor | None:
        """(B, n) bool, True for real tokens; None if all are."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if mask is None:
            return None
        mask = torch.as_tensor(mask, device=self.device).bool()
        return None if bool(mask.all()) else mask

    def readout(self, state: Tensor) -> Tensor:
        """Logits from states L, with all that the model does to them (caps, scales)."""
        flat = state.ndim == 2
        state = state[:, None] if flat else state

        def forward(*args: Any, **unused: Any) -> Any:
            return _Output(last_hidden_state=state)

        # the model's own code between its decoder and its logits, whatever that is
        before = self.backbone.__dict__.get("forward")
        self.backbone.forward = forward
        try:
            logits = self.module(inputs_embeds=state, use_cache=False).logits
        finally:
            if before is None:
                del self.backbone.forward
            else:
                self.backbone.forward = before
        return logits[:, 0] if flat else logits

    def _final(self, emb: Tensor, mask: Tensor | None) -> Tensor:
        places = {}
        if mask is not None:
            places["attention_mask"] = mask.long()
            places["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0) + self._first_position
        return self.backbone(inputs_embeds=emb, use_cache=False, **places).last_hidden_state


def check_language_model(model: Any) -> None:
    """Refuse a model that cannot be asked in words.

    Raises:
        TypeError: it is no `HFCausalLM`.
    """
    if not isinstance(model, HFCausalLM):
        raise TypeError(f"text is put to a HFCausalLM(model, tokenizer) alone; got {type(model).__name__}")


def refuse_learned_prompts(model: Any) -> None:
    """Refuse a model of PEFT that puts learned vectors in front.

    Raises:
        TypeError: it does.
    """
    prompts: Any = getattr(model, "active_peft_config", None)
    if prompts is not None and prompts.is_prompt_learning:
        raise TypeError(
            f"{type(model).__name__} puts learned vectors in front ({prompts.peft_type.value}), which its "
            "decoder does not know of: HFCausalLM takes adapters of weights alone, such as LoRA"
        )


def _decoder(model: Any) -> Any:
    """What makes states, without the head; that of Llama 4 says that it is the whole model."""
    decoder = model.get_decoder()
    return decoder.model if hasattr(decoder, "lm_head") and hasattr(decoder, "model") else decoder


class _Output(SimpleNamespace):
    """Stands for a decoder's output: fields that are not there are None, and it can be indexed."""

    def __getattr__(self, name: str) -> Any:
        return None

    def __getitem__(self, index: Any) -> Any:
        return self.last_hidden_state if index == 0 else ()


def _learned_positions(backbone: nn.Module, config: Any) -> tuple[int | None, int]:
    """How many there are, None if they are not learned, and the number of the first."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in LEARNED_POSITIONS:
            # RoBERTa counts from behind the number of its padding; OPT does too, but inside of its table
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(config.max_position_embeddings) - first, first
    return None, 0


def _layers(backbone: nn.Module, name: str) -> list[nn.Module]:
    """The decoder's layers: its list of as many modules as the configuration says."""
    depth = getattr(getattr(backbone, "config", None), "num_hidden_layers", None)
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise TypeError(
        f"no list of {depth} layers was found in {name}: describe the model by a ModuleAdapter instead"
    )
