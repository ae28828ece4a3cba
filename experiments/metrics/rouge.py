"""ROUGE-L of answers."""

from __future__ import annotations

from collections.abc import Sequence


def rouge_items(truths: Sequence[str], outputs: Sequence[str]) -> list[float]:
    """Return the ROUGE-L F1 of each output against its truth, x 100, no stemmer."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return [
        100.0 * scorer.score(truth, output)["rougeL"].fmeasure for truth, output in zip(truths, outputs, strict=True)
    ]
