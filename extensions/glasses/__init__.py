"""Diagnostics of representational collapse and over-squashing in sequence models.

    from extensions.glasses import HFCausalLM, Ones, collapse_curve, sensitivity_profile

    model = HFCausalLM(AutoModelForCausalLM.from_pretrained(name).eval(), tokenizer)
    curve = collapse_curve(model, Ones(one=17, prefix=[1, 5, 9]), lengths=(16, 64, 256, 1024))
    curve.n_star("bfloat16")

Of Barbero et al., "Transformers need glasses! Information over-squashing in language tasks", NeurIPS 2024,
arXiv 2406.04267. Importing it loads torch, and transformers only with `GlassesCallback`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .adapters import DecisionTransformerAdapter, HFCausalLM, ModuleAdapter, RADTAdapter, SequenceModel
from .answers import Answers, answer_items
from .attention import Lens
from .ceiling import RewardCeiling, reward_ceiling
from .chat import ChatTask
from .compare import compare
from .comparison import Comparison
from .curve import CollapseCurve, collapse_curve
from .encoding import MinimalPairs
from .families import Ones, PairFamily, RandomThenRepeat, RepeatLast, Separated
from .gap import GapReport, representation_gap
from .lipschitz import lipschitz_bound
from .paths import Bound, BoundCheck, bound_check, path_counts, path_profile
from .preflight import Preflight, preflight
from .report import GlassesReport, PolicyReport, ReportConfig
from .retrieval import RetrievalProbe, retrieval_probe
from .returns import ReturnSensitivity, return_sensitivity
from .sensitivity import SensitivityProfile, sensitivity_profile
from .tasks import Item, Question, Task

if TYPE_CHECKING:
    from .callback import GlassesCallback

__all__ = [
    "Answers", "Bound", "BoundCheck", "ChatTask", "CollapseCurve", "Comparison",
    "DecisionTransformerAdapter", "GapReport", "GlassesCallback", "GlassesReport", "HFCausalLM", "Item",
    "Lens", "MinimalPairs", "ModuleAdapter", "Ones", "PairFamily", "PolicyReport", "Preflight",
    "Question", "RADTAdapter", "RandomThenRepeat", "RepeatLast", "ReportConfig", "RetrievalProbe",
    "ReturnSensitivity", "RewardCeiling", "SensitivityProfile", "Separated", "SequenceModel", "Task",
    "answer_items", "bound_check", "collapse_curve", "compare", "lipschitz_bound", "path_counts",
    "path_profile", "preflight", "representation_gap", "retrieval_probe", "return_sensitivity",
    "reward_ceiling", "sensitivity_profile",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`GlassesCallback`, which alone needs transformers."""
    if name != "GlassesCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .callback import GlassesCallback
    except ImportError as error:
        raise ImportError("GlassesCallback needs transformers: pip install 'rl-extensions[trl]'") from error
    return GlassesCallback
