"""Methods for TorchRL."""

from .radt import (
    OnlineRADTActor,
    OnlineRADTLoss,
    RADTActor,
    RADTConfig,
    RADTInferenceWrapper,
    RADTLoss,
    RADTPolicy,
    RADTransformer,
    TrajectoryWindows,
    return_to_go,
)

__all__ = [
    "OnlineRADTActor",
    "OnlineRADTLoss",
    "RADTActor",
    "RADTConfig",
    "RADTInferenceWrapper",
    "RADTLoss",
    "RADTPolicy",
    "RADTransformer",
    "TrajectoryWindows",
    "return_to_go",
]
