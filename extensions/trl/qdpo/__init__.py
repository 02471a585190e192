"""QDPO: a quantized model aligned to its own full-precision self."""

from .qdpo_config import QDPOConfig
from .qdpo_trainer import QDPOTrainer

__all__ = ["QDPOConfig", "QDPOTrainer"]
