"""Methods for TorchRL."""

from .radt import (
    Alignment,
    MultiTargetReturn,
    OnlineRADTActor,
    OnlineRADTLoss,
    RADTActor,
    RADTConfig,
    RADTInferenceWrapper,
    RADTLoss,
    RADTPolicy,
    RADTransformer,
    TrajectoryWindows,
    evaluate_targets,
    return_to_go,
    spaced_targets,
)

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
