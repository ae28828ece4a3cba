"""T15: greedy answers that a bounded change of the logits cannot alter, and what that says about M1, M2 and M4."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim

U64 = 2.0**-53


def top_two_gap(logits: NDArray[Any]) -> NDArray[Any]:
    """Return the largest logit less the second largest, (…,); 0 for a tie.

    Args:
        logits: logits of each token, (…, vocabulary), vocabulary >= 2, finite.

    Raises:
        ValueError: there are fewer than two tokens, or a logit is not finite.
    """
    values = np.asarray(logits, np.float64)
    if values.ndim < 1 or values.shape[-1] < 2:
        raise ValueError(f"logits must have two tokens at least, got shape={values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite, got nan or inf")
    top = np.partition(values, -2, axis=-1)[..., -2:]
    return np.asarray(top[..., 1] - top[..., 0])


@claim("T15", kind="exact", source="triangle inequality on two logits")
def certified_tokens(logits: NDArray[Any], change: NDArray[Any] | float) -> NDArray[Any]:
    """Arg max is unchanged where l_(1) - l_(2) > 2 c, c >= max_k |l'_k - l_k|: True there.

    Sharp: at l_(1) - l_(2) = 2 c a tie can be made. Half the spread max_k (l' - l) - min_k (l' - l) serves as c too,
    is never larger, and ignores a common shift of all logits.

    Args:
        logits: logits of the first model, (…, vocabulary).
        change: c, >= 0, one number or (…,).

    Returns:
        bool (…,); rounded to the safe side.

    Raises:
        ValueError: a change is negative or nan, or the logits are as `top_two_gap` refuses them.
    """
    size = np.asarray(change, np.float64)
    if not (size >= 0).all():
        raise ValueError(f"change must be non-negative, got change={change!r}")
    return np.asarray(top_two_gap(logits) * (1 - 2 * U64) > 2 * size)


@claim("T15", kind="exact", source="induction over tokens")
def certified_prefix(certified: NDArray[Any]) -> NDArray[Any]:
    """The first n tokens of two greedy answers agree, n = the number of certified tokens before the first other one.

    The logits are those of the first model along its own greedy answer, and the change bounds the second model's
    logits after the same words: up to n the second model reads just these. After it nothing is known, so a *share*
    of certified tokens says nothing: with 9 tokens of 10 certified, all but the first, all 10 can change.

    Args:
        certified: verdicts of `certified_tokens`, bool (answers, tokens); padding after the end of an answer is True.

    Returns:
        int (answers,).

    Raises:
        ValueError: the array is not two-dimensional.
    """  # noqa: D401
    kept = np.asarray(certified, bool)
    if kept.ndim != 2:
        raise ValueError(f"certified must be (answers, tokens), got shape={kept.shape}")
    return np.asarray(np.cumprod(kept, axis=1).sum(axis=1))


@claim("T15", kind="exact", source="a mean over answers of a score in [low, high]")
def greedy_metric_change_upper_bound(certified: NDArray[Any], low: float = 0.0, high: float = 1.0) -> float:
    """|m - m'| <= (high - low) (answers with a token that is not certified) / answers, for M1, M2 and M4.

    The metric is a mean over greedy answers of any score in [low, high] of the answer; attained by a score that is
    `low` for one answer and `high` for every other.

    Args:
        certified: verdicts, bool (answers, tokens), the token that ends the answer included, padding True.
        low: smallest score.
        high: largest score; 100 for a ROUGE in percent.

    Returns:
        The bound in the units of the metric, rounded up.

    Raises:
        ValueError: there is no answer, or the range is empty.
    """
    kept = np.asarray(certified, bool)
    answers, tokens = kept.shape if kept.ndim == 2 else (0, 0)
    if answers == 0:
        raise ValueError(f"certified must be (answers, tokens), got shape={kept.shape}")
    if not low <= high:
        raise ValueError(f"low must be at most high, got low={low!r} and high={high!r}")
    open_answers = int((certified_prefix(kept) < tokens).sum())
    if not open_answers:
        return 0.0
    return float(np.nextafter((high - low) * (open_answers / answers) * (1 + 4 * U64), np.inf))
