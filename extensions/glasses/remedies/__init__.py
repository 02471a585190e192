"""What can be done about collapse: in the text, in attention, in precision, and in the steps of a policy."""

from .attention import adaptive_temperature, log_n_scale, sliding_window
from .dilute import DilutedText, dilute_ids, dilute_text
from .steps import insert_between_steps, repeat_returns, window_steps
from .text import (
    Alternate,
    BosPrefix,
    Dilute,
    Filler,
    Hint,
    IndexMarkers,
    RepeatQuestion,
    Scattered,
    Separators,
    TextRemedy,
)
from .upcast import upcast

__all__ = [
    "Alternate", "BosPrefix", "Dilute", "DilutedText", "Filler", "Hint", "IndexMarkers", "RepeatQuestion",
    "Scattered", "Separators", "TextRemedy", "adaptive_temperature", "dilute_ids", "dilute_text",
    "insert_between_steps", "log_n_scale", "repeat_returns", "sliding_window", "upcast", "window_steps",
]  # fmt: skip
