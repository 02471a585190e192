"""What can be done about collapse: in the text, in attention, in precision, and in the steps of a policy."""

from .dilute import DilutedText, dilute_ids, dilute_text
from .text import (
    Alternate,
    BosPrefix,
    Dilute,
    Filler,
    Hint,
    IndexMarkers,
    RepeatQuestion,
    Separators,
    TextRemedy,
)

__all__ = [
    "Alternate", "BosPrefix", "Dilute", "DilutedText", "Filler", "Hint", "IndexMarkers", "RepeatQuestion",
    "Separators", "TextRemedy", "dilute_ids", "dilute_text",
]  # fmt: skip
