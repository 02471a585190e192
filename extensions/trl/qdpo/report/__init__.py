"""What quantization did to a model's conversation, and what training gave back: the report card."""

from .attribution import FlipAttribution, flip_attribution
from .card import ReportCard, report_card
from .flips import FlipRates, teacher_forced_flips
from .perplexity import Perplexity, perplexity
from .replies import ReplyAgreement, compare_replies, label_violations

__all__ = [
    "FlipAttribution",
    "FlipRates",
    "Perplexity",
    "ReplyAgreement",
    "ReportCard",
    "compare_replies",
    "flip_attribution",
    "label_violations",
    "perplexity",
    "report_card",
    "teacher_forced_flips",
]
