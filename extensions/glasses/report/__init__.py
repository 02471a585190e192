"""All diagnostics of a model on the same sequences, with pictures and verdicts."""

from .config import ReportConfig
from .language_model import GlassesReport
from .policy import PolicyReport
from .report import Report

__all__ = ["GlassesReport", "PolicyReport", "Report", "ReportConfig"]
