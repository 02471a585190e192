"""Diagnostics of representational collapse and over-squashing in sequence models."""

from .adapters import (
    DecisionTransformerAdapter,
    HFCausalLM,
    ModuleAdapter,
    RADTAdapter,
    SequenceModel,
)
from .answers import Answers, answer_items
from .attention import Lens
from .curve import CollapseCurve, collapse_curve
from .families import Ones, PairFamily, RandomThenRepeat, RepeatLast, Separated
from .gap import GapReport, representation_gap
from .lipschitz import lipschitz_bound
from .paths import BoundCheck, bound_check, path_counts, path_profile
from .preflight import Preflight, preflight
from .retrieval import RetrievalProbe, retrieval_probe
from .sensitivity import SensitivityProfile, sensitivity_profile
from .tasks import Item, Question, Task

__all__ = [
    "Answers", "BoundCheck", "CollapseCurve", "DecisionTransformerAdapter", "GapReport", "HFCausalLM",
    "Item", "Lens", "ModuleAdapter", "Ones", "PairFamily", "Preflight", "Question", "RADTAdapter",
    "RandomThenRepeat", "RepeatLast", "RetrievalProbe", "SensitivityProfile", "Separated",
    "SequenceModel", "Task", "answer_items", "bound_check", "collapse_curve", "lipschitz_bound",
    "path_counts", "path_profile", "preflight", "representation_gap", "retrieval_probe",
    "sensitivity_profile",
]  # fmt: skip
