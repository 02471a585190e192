"""MiniLLM: on-policy distillation of language models by policy gradient on the reverse KL."""

from .minillm_config import MiniLLMConfig
from .minillm_trainer import MiniLLMTrainer

__all__ = ["MiniLLMConfig", "MiniLLMTrainer"]
