"""What the constructors of all trainers here ask of their first arguments."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from ._host import get_config_model_id


def check_arguments(args: Any, wanted: type[TrainingArguments], model: Any, processing_class: Any) -> None:
    """
    The configuration is the trainer's own, and there is a tokenizer or a name to find it by.

    Raises:
        TypeError: the configuration is of another class than ``wanted``.
        ValueError: neither tokenizer nor name.
    """
    if not isinstance(args, wanted):
        raise TypeError(
            f"args must be a {wanted.__name__}, got a {type(args).__name__}. {wanted.__name__} takes all "
            f"that TRL's {wanted.__mro__[1].__name__} does: from extensions.trl import {wanted.__name__}."
        )
    named = isinstance(model, str) or get_config_model_id(model.config)
    if processing_class is None and not named:
        raise ValueError(
            "The model has no name to find its tokenizer by. Pass the tokenizer as `processing_class`."
        )
