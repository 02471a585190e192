"""What a Return-Aligned Decision Transformer is built from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

NORMS = ("layernorm", "layernorm_nobias", "rmsnorm")
PLACEMENTS = ("post", "pre")
RETURN_EMBEDDINGS = ("linear", "mlp", "fourier")
ARCHITECTURES = ("radt", "three_streams")
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "tanh")


@dataclass
class RADTConfig:
    """The fields of :class:`torchrl.modules.models.decision_transformer.DecisionTransformer.DTConfig`, and
    those of RADT. The defaults are the paper's for MuJoCo, but for the squashing of actions, which in TorchRL
    belongs to the distribution.

    Args:
        n_embd: width D.
        n_layer: blocks.
        n_head: heads of each attention; divides ``n_embd``.
        n_inner: width inside the MLP; 4 ``n_embd`` if None.
        activation: of the MLP: ``"gelu"``, ``"gelu_new"`` (its tanh form), ``"relu"``, ``"silu"`` or
            ``"tanh"``.
        n_positions: longest sequence in tokens, three a step as DT counts them.
        resid_pdrop: dropout after self-attention, SeqRA and MLP, in [0, 1).
        attn_pdrop: dropout of attention weights, in [0, 1).
        max_ep_len: steps of the longest episode; give it to `TrajectoryWindows` too, which refuses longer
            ones.
        seqra: sequence return aligner: cross-attention from states and actions to returns.
        stepra: stepwise return aligner: layer norms whose scale and shift are functions of the return.
        alpha_gate: SeqRA's output is weighted by 1 + alpha, a gate that starts at 0.
        norm: ``"layernorm"``; ``"layernorm_nobias"``, without shifts of its own; ``"rmsnorm"``.
        placement: of the norms: ``"post"``, after each residual sum, or ``"pre"``, before each sublayer.
        return_embedding: of the return-to-go r: ``"linear"``, w r + b; ``"mlp"``, two layers; ``"fourier"``,
            one layer over sines and cosines of r.
        return_shift, return_scale: the return-to-go is embedded as (r - shift) / scale. The paper divides by
            1,000, and the caller may have done so; with the mean and standard deviation of
            `TrajectoryWindows.return_to_go` it is standardised.
        attention_window: each token sees the last so many steps alone, in every layer; None for all. With it
            an actor's keys and values can be cached while its window slides.
        architecture: ``"radt"``; or ``"three_streams"``, a negative control: states attend to actions and to
            returns by two plain cross-attentions. It has neither aligner, and ordinary norms after each sum.

    Raises:
        ValueError: a value out of range.
    """

    n_embd: int = 128
    n_layer: int = 3
    n_head: int = 1
    n_inner: int | None = None
    activation: str = "gelu"
    n_positions: int = 1024
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    max_ep_len: int = 1000
    seqra: bool = True
    stepra: bool = True
    alpha_gate: bool = True
    norm: str = "layernorm"
    placement: str = "post"
    return_embedding: str = "linear"
    return_shift: float = 0.0
    return_scale: float = 1.0
    attention_window: int | None = None
    architecture: str = "radt"

    def __post_init__(self) -> None:
        for name in ("n_embd", "n_layer", "n_head", "n_positions", "max_ep_len"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be an integer of at least 1, got {getattr(self, name)!r}")
        for name in ("n_inner", "attention_window"):
            value = getattr(self, name)
            if not (value is None or _is_count(value)):
                raise ValueError(f"{name} must be an integer of at least 1 or None, got {value!r}")
        if self.n_embd % 2 or self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd must be even and a multiple of n_head, got n_embd={self.n_embd}, "
                f"n_head={self.n_head}"
            )
        for name in ("resid_pdrop", "attn_pdrop"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 <= float(value) < 1):
                raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
        for name in ("seqra", "stepra", "alpha_gate"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not (isinstance(self.return_shift, Real) and math.isfinite(self.return_shift)):
            raise ValueError(f"return_shift must be a finite number, got {self.return_shift!r}")
        if not (isinstance(self.return_scale, Real) and 0 < self.return_scale < math.inf):
            raise ValueError(f"return_scale must be a positive, finite number, got {self.return_scale!r}")
        for name, known in (
            ("activation", ACTIVATIONS),
            ("norm", NORMS),
            ("placement", PLACEMENTS),
            ("return_embedding", RETURN_EMBEDDINGS),
            ("architecture", ARCHITECTURES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")

    @property
    def inner(self) -> int:
        """Width inside the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def uses_returns(self) -> bool:
        """Whether the actions depend on the return-to-go at all."""
        return self.architecture != "radt" or self.seqra or self.stepra

    @classmethod
    def of(cls, config: Any) -> RADTConfig:
        """The configuration from one of ours, one of TorchRL's, or a mapping of either's fields.

        Raises:
            TypeError: it is none of these, or has an unknown field.
        """
        if isinstance(config, cls):
            return dataclasses.replace(config)
        if config is None:
            return cls()
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            config = dataclasses.asdict(config)
        if not isinstance(config, Mapping):
            try:
                config = dict(config)
            except (TypeError, ValueError):
                raise TypeError(f"Config of type {type(config)} is not supported.") from None
        unknown = sorted(set(config) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise TypeError(
                f"transformer_config has no field {', '.join(unknown)}; there are "
                f"{', '.join(field.name for field in dataclasses.fields(cls))}"
            )
        return cls(**config)


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
