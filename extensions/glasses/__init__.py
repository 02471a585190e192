"""Diagnostics of representational collapse and over-squashing in sequence models."""

from .adapters import (
    DecisionTransformerAdapter,
    HFCausalLM,
    ModuleAdapter,
    RADTAdapter,
    SequenceModel,
)
from .curve import CollapseCurve, collapse_curve
from .families import Ones, PairFamily, RandomThenRepeat, RepeatLast, Separated
from .gap import GapReport, representation_gap

__all__ = [
    "CollapseCurve", "DecisionTransformerAdapter", "GapReport", "HFCausalLM", "ModuleAdapter", "Ones", "PairFamily",
    "RADTAdapter", "RandomThenRepeat", "RepeatLast", "Separated", "SequenceModel", "collapse_curve",
    "representation_gap",
]  # fmt: skip
