"""The Return-Aligned Decision Transformer (Tanaka, Abe, Ariu, Morimura and Simo-Serra), for TorchRL."""

from .windows import TrajectoryWindows, return_to_go

__all__ = ["TrajectoryWindows", "return_to_go"]
