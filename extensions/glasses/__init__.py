"""Diagnostics of representational collapse and over-squashing in sequence models."""

from .adapters import (
    DecisionTransformerAdapter,
    HFCausalLM,
    ModuleAdapter,
    RADTAdapter,
    SequenceModel,
)
from .attention import Lens
from .curve import CollapseCurve, collapse_curve
from .families import Ones, PairFamily, RandomThenRepeat, RepeatLast, Separated
from .gap import GapReport, representation_gap
from .lipschitz import lipschitz_bound
from .paths import BoundCheck, bound_check, path_counts, path_profile
from .sensitivity import SensitivityProfile, sensitivity_profile
from .tasks import Item, Question, Task

__all__ = [
    "BoundCheck", "CollapseCurve", "DecisionTransformerAdapter", "GapReport", "HFCausalLM", "Item", "Lens",
    "ModuleAdapter", "Ones", "PairFamily", "Question", "RADTAdapter", "RandomThenRepeat", "RepeatLast",
    "SensitivityProfile", "Separated", "SequenceModel", "Task", "bound_check", "collapse_curve",
    "lipschitz_bound", "path_counts", "path_profile", "representation_gap", "sensitivity_profile",
]  # fmt: skip
