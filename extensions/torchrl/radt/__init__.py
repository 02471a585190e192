"""RADT, the Return-Aligned Decision Transformer."""

from .actor import OnlineRADTActor, RADTActor
from .alignment import Alignment, evaluate_targets, spaced_targets
from .config import RADTConfig
from .inference import RADTInferenceWrapper
from .loss import OnlineRADTLoss, RADTLoss
from .model import RADTransformer
from .policy import RADTPolicy
from .targets import MultiTargetReturn
from .windows import TrajectoryWindows, return_to_go

__all__ = [
    "Alignment",
    "MultiTargetReturn",
    "OnlineRADTActor",
    "OnlineRADTLoss",
    "RADTActor",
    "RADTConfig",
    "RADTInferenceWrapper",
    "RADTLoss",
    "RADTPolicy",
    "RADTransformer",
    "TrajectoryWindows",
    "evaluate_targets",
    "return_to_go",
    "spaced_targets",
]
