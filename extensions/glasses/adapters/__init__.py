"""Models as `SequenceModel`."""

from .base import Adapter, check_adapter
from .decision_transformer import DecisionTransformerAdapter
from .hf_causal_lm import HFCausalLM, check_language_model, refuse_learned_prompts
from .module import ModuleAdapter
from .protocol import ROLES, SequenceModel
from .radt import RADTAdapter

__all__ = [
    "ROLES",
    "Adapter",
    "DecisionTransformerAdapter",
    "HFCausalLM",
    "ModuleAdapter",
    "RADTAdapter",
    "SequenceModel",
    "check_adapter",
    "check_language_model",
    "refuse_learned_prompts",
]
