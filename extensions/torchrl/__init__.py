"""Methods for TorchRL."""

from .radt import TrajectoryWindows, return_to_go

__all__ = ["TrajectoryWindows", "return_to_go"]
