"""Post-training methods as TRL trainers."""

from .minillm import MiniLLMConfig, MiniLLMTrainer
from .qdpo import QDPOConfig, QDPOTrainer

__all__ = ["MiniLLMConfig", "MiniLLMTrainer", "QDPOConfig", "QDPOTrainer"]
