"""A math library that is the same on every machine: exact values by mpmath, each rounded toward zero to float64.

IEEE 754 fixes + - * / and the square root, and leaves log, exp and the like to the library: glibc's, SVML's and others
differ in the last digit. The best that is known of all of them is that they are faithful, off by less than an ulp. A
bound that is to hold on every machine must hold with the faithful library that is worst for it, and a test that its
slack is needed must say of which library: this one errs by as much as any, and always to one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
from numpy.typing import ArrayLike, NDArray

DIGITS = 60  # of 17 that float64 has
REPLACED = ("log1p", "expm1")


def toward_zero(exact: Callable[[Any], Any]) -> Callable[[ArrayLike], NDArray[Any]]:
    """Return a function of arrays with the values of `exact`, cut off to float64; inf where they overflow."""

    def rounded(x: float) -> float:
        with mpmath.workdps(DIGITS):
            value = exact(mpmath.mpf(x))
            near = float(value)
            if math.isinf(near) or abs(mpmath.mpf(near)) <= abs(value):
                return near
            return math.nextafter(near, 0)

    return np.vectorize(rounded, otypes=[np.float64])


def numpy_toward_zero() -> SimpleNamespace:
    """Return numpy with its functions in `REPLACED` taken from here, to be put in place of a module's `np`."""
    own = {name: toward_zero(getattr(mpmath, name)) for name in REPLACED}
    return SimpleNamespace(**(vars(np) | own))
