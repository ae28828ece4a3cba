"""The numbers of answers for which there is a leak@k, and the names of the metrics."""

from __future__ import annotations

from collections.abc import Iterable

ANSWERS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Those of the paper's tables."""


def leak_name(k: int) -> str:
    """Return the name of leak@k in rows and profiles."""
    return f"leak_at_{k}"


def check_samples(metrics: Iterable[str], samples: int) -> None:
    """Refuse a leak@k of more answers than are drawn.

    Raises:
        ValueError: there is one among the metrics.
    """
    asked = set(metrics)
    for k in ANSWERS:
        if leak_name(k) in asked and k > samples:
            raise ValueError(f"evaluation.leak.samples must be at least {k} for {leak_name(k)}, got samples={samples}")
