"""Many tensors, many tests: which p-values stay significant when the false discoveries among them are controlled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import claim


class Discoveries(NamedTuple):
    """`rejected` at the level asked for; `adjusted`: the smallest level at which each test would be rejected."""

    rejected: NDArray[Any]
    adjusted: NDArray[Any]


@claim("T12", kind="law", source="Benjamini & Hochberg 1995, thm 1; Benjamini & Yekutieli 2001, thm 1.3")
def false_discoveries(p: NDArray[Any], level: float, *, dependent: bool = False) -> Discoveries:
    """Reject the k smallest p-values, k = max {i : p_(i) <= i level / (m c)}: false discovery rate <= level m_0 / m.

    c = 1 for tests that are independent (or positively dependent); c = 1 + 1/2 + … + 1/m under any dependence, as
    between tensors that one optimizer trained together. m_0 of the m null hypotheses are true. p-values may be too
    large, never too small: those of `wash` are.

    Args:
        p: p-values in [0, 1], (m,), m >= 1; a tensor in which nothing can flip has p = 1.
        level: bound of the false discovery rate, in (0, 1).
        dependent: whether to allow for any dependence.

    Raises:
        ValueError: there is no p-value, one is outside [0, 1], or the level is outside (0, 1).
    """
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"p must be a vector of at least one p-value, got shape={values.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p must be in [0, 1], got p={p!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got level={level!r}")
    m = values.size
    rank = np.arange(1, m + 1)
    order = np.argsort(values)
    penalty = float((1 / rank).sum()) if dependent else 1.0
    raw = values[order] * m * penalty / rank
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return Discoveries(adjusted <= level, adjusted)
