"""All diagnostics of a language model on some tasks, with pictures and verdicts."""

from .config import ReportConfig
from .report import GlassesReport

__all__ = ["GlassesReport", "ReportConfig"]
