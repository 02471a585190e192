"""
What is reported of a language model beside its loss: Rouge-L, Dist-n, calibration, exposure bias, the
divergences between two models' distributions of whole answers, and which of two answers a judge prefers.
"""

from .calibration import choice_probabilities, expected_calibration_error
from .divergences import SequenceDivergence, sequence_divergence
from .estimates import Estimate
from .exposure import ExposureBias, exposure_bias
from .judges import Judge, ScoreJudge, Verdict, compare
from .rouge_callback import RougeCallback
from .sampling import generate_texts, sample_completions
from .scoring import TokenScores, completion_log_probs, score_completions
from .texts import distinct_n, rouge_l, rouge_l_scores

__all__ = [
    "Estimate",
    "ExposureBias",
    "Judge",
    "RougeCallback",
    "ScoreJudge",
    "SequenceDivergence",
    "TokenScores",
    "Verdict",
    "choice_probabilities",
    "compare",
    "completion_log_probs",
    "distinct_n",
    "expected_calibration_error",
    "exposure_bias",
    "generate_texts",
    "rouge_l",
    "rouge_l_scores",
    "sample_completions",
    "score_completions",
    "sequence_divergence",
]
