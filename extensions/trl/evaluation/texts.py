"""Rouge-L and Dist-n of generated texts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any


def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("Rouge-L needs the rouge-score package: pip install rouge-score") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_scores(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[float]:
    """Rouge-L of each prediction: the F measure of its longest common subsequence with the reference.

    Args:
        predictions: generated texts.
        references: the text that each should be, or several such texts, of which the nearest counts.

    Returns:
        Scores in 0 ... 100, after Porter's stemmer, by the rouge-score package.

    Raises:
        ImportError: rouge-score is not installed.
        ValueError: there are not as many references as predictions, or a prediction has an empty list of
            them.
    """
    if len(predictions) != len(references):
        raise ValueError(f"There are {len(predictions)} predictions and {len(references)} references.")
    scorer = _rouge_scorer()
    scores = []
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        targets = [reference] if isinstance(reference, str) else list(reference)
        if not targets:
            raise ValueError(f"Prediction {index} has an empty list of references.")
        scores.append(100 * float(scorer.score_multi(targets, prediction)["rougeL"].fmeasure))
    return scores


def rouge_l(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Mean of :func:`rouge_l_scores`, in 0 ... 100, as papers on instruction following report it.

    Raises:
        ImportError: rouge-score is not installed.
        ValueError: there are no predictions, or not as many references.
    """
    scores = rouge_l_scores(predictions, references)
    if not scores:
        raise ValueError("Rouge-L of no predictions is not defined.")
    return sum(scores) / len(scores)


def distinct_n(texts: Sequence[str | Sequence[Hashable]], n: int = 4) -> float:
    """Dist-n: distinct n-grams of a set of texts as a share of all its n-grams.

    Args:
        texts: strings, which are split at white space, or sequences of tokens. N-grams do not cross texts.
        n: tokens of an n-gram, at least 1.

    Returns:
        A share in 0 ... 1; 0 if no text has n tokens, since there is no diversity in nothing. The share falls
        as the set grows: compare sets of equal size.

    Raises:
        ValueError: ``n`` is less than 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    seen: set[tuple[Hashable, ...]] = set()
    total = 0
    for text in texts:
        tokens = text.split() if isinstance(text, str) else list(text)
        seen.update(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        total += max(len(tokens) - n + 1, 0)
    return len(seen) / total if total else 0.0
