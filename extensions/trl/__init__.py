"""Post-training methods as TRL trainers."""

from .minillm import MiniLLMConfig, MiniLLMTrainer

__all__ = ["MiniLLMConfig", "MiniLLMTrainer"]
