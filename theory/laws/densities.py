"""Laws of a weight: Gaussian, Laplace, Student-t, and the histogram of a tensor.

Takes a standard deviation, or a tensor; gives a `Density`, with its probabilities, quantiles and tails.

>>> round(float(density_named("gaussian", 2.0).cdf(2.0)), 4)
0.8413
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

STUDENT_FREEDOM = 5.0  # tails as heavy as those of trained weights, with a finite fourth moment
HISTOGRAM_BINS = 4096


@runtime_checkable
class Density(Protocol):
    """A law of weights, in the units of the weights. All methods work on any shape, in float64."""

    @property
    def scale(self) -> float:
        """Standard deviation, > 0."""
        ...

    def cdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return P(w <= x)."""
        ...

    def pdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return the density at x, >= 0."""
        ...

    def quantile(self, p: ArrayLike) -> NDArray[Any]:
        """Return the x with P(w <= x) = p, p in [0, 1]."""
        ...

    def magnitude_above(self, tail: ArrayLike) -> NDArray[Any]:
        """Return the x >= 0 with P(|w| > x) = tail; exact where 1 - tail would round to 1."""
        ...


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {name}={value!r}")
    return value


@dataclass(frozen=True)
class Gaussian:
    """Mean 0 and standard deviation `scale`."""

    scale: float

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    def cdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return Phi(x / scale)."""
        return np.asarray(scipy.special.ndtr(np.asarray(x) / self.scale))

    def pdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return exp(-x^2 / 2 scale^2) / (scale sqrt(2 pi))."""
        z = np.asarray(x) / self.scale
        return np.asarray(np.exp(-z * z / 2) / (self.scale * math.sqrt(2 * math.pi)))

    def quantile(self, p: ArrayLike) -> NDArray[Any]:
        """Return the inverse of `cdf`."""
        return np.asarray(self.scale * scipy.special.ndtri(p))

    def magnitude_above(self, tail: ArrayLike) -> NDArray[Any]:
        """Return -scale Phi^-1(tail / 2)."""
        special = scipy.special
        return np.asarray(-self.scale * special.ndtri(np.asarray(tail) / 2))


@dataclass(frozen=True)
class Laplace:
    """exp(-|x| / b) / 2b with b = scale / sqrt(2)."""

    scale: float

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    @property
    def _b(self) -> float:
        return self.scale / math.sqrt(2)

    def cdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return 1/2 + sign(x) (1 - exp(-|x| / b)) / 2, without cancellation below 0."""
        z = np.asarray(x, np.float64) / self._b
        lower = np.exp(-np.abs(z)) / 2
        return np.where(z < 0, lower, 1 - lower)

    def pdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return exp(-|x| / b) / 2b."""
        return np.asarray(np.exp(-np.abs(x) / self._b) / (2 * self._b))

    def quantile(self, p: ArrayLike) -> NDArray[Any]:
        """Return the inverse of `cdf`."""
        p = np.asarray(p, np.float64)
        with np.errstate(divide="ignore"):  # 0 and 1 give the infinite ends
            return np.sign(p - 0.5) * -self._b * np.log(2 * np.minimum(p, 1 - p))

    def magnitude_above(self, tail: ArrayLike) -> NDArray[Any]:
        """Return -b log(tail)."""
        with np.errstate(divide="ignore"):
            return np.asarray(-self._b * np.log(tail))


@dataclass(frozen=True)
class StudentT:
    """Student's t, stretched to standard deviation `scale`; `freedom` > 2."""

    scale: float
    freedom: float = STUDENT_FREEDOM

    def __post_init__(self) -> None:
        _positive("scale", self.scale)
        if not (math.isfinite(self.freedom) and self.freedom > 2):
            raise ValueError(f"freedom must exceed 2, got freedom={self.freedom!r}")

    @property
    def _unit(self) -> float:
        return self.scale * math.sqrt((self.freedom - 2) / self.freedom)

    def cdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return the incomplete beta function of the standardized x."""
        return np.asarray(scipy.special.stdtr(self.freedom, np.asarray(x) / self._unit))

    def pdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return (1 + z^2 / freedom)^(-(freedom + 1) / 2) / (unit sqrt(freedom) B(freedom / 2, 1/2)), z = x / unit."""
        z, n = np.asarray(x) / self._unit, self.freedom
        special = scipy.special
        log_norm = math.log(n) / 2 + float(special.betaln(n / 2, 0.5)) + math.log(self._unit)
        return np.asarray(np.exp(-(n + 1) / 2 * np.log1p(z * z / n) - log_norm))

    def quantile(self, p: ArrayLike) -> NDArray[Any]:
        """Return the inverse of `cdf`."""
        return np.asarray(self._unit * scipy.special.stdtrit(self.freedom, p))

    def magnitude_above(self, tail: ArrayLike) -> NDArray[Any]:
        """Return minus the quantile of tail / 2."""
        return -self.quantile(np.asarray(tail) / 2)


@dataclass(frozen=True)
class Empirical:
    """A piecewise constant density: `knots` (m + 1,) ascending, `below` the share of weights up to each."""

    knots: NDArray[Any]
    below: NDArray[Any]
    scale: float

    def cdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return P(w <= x), linear between the knots."""
        return np.asarray(np.interp(np.asarray(x, np.float64), self.knots, self.below))

    def pdf(self, x: ArrayLike) -> NDArray[Any]:
        """Return the share of a bin over its width; 0 outside."""
        x = np.asarray(x, np.float64)
        heights = np.diff(self.below) / np.diff(self.knots)
        bins = np.clip(np.searchsorted(self.knots, x, side="right") - 1, 0, len(heights) - 1)
        return np.where((x >= self.knots[0]) & (x <= self.knots[-1]), heights[bins], 0.0)

    def quantile(self, p: ArrayLike) -> NDArray[Any]:
        """Return the inverse of `cdf`."""
        return np.asarray(np.interp(np.asarray(p, np.float64), self.below, self.knots))

    def magnitude_above(self, tail: ArrayLike) -> NDArray[Any]:
        """Interpolate P(|w| > x) between the magnitudes of the knots; never go beyond the largest."""
        x = np.unique(np.abs(self.knots))
        x = x if x[0] == 0 else np.concatenate([[0.0], x])
        above = np.minimum(1 - (self.cdf(x) - self.cdf(-x)), 1.0)
        return np.asarray(np.interp(np.asarray(tail, np.float64), above[::-1], x[::-1]))


def empirical(w: NDArray[Any], bins: int = HISTOGRAM_BINS) -> Empirical:
    """Return the histogram of a tensor between `bins + 1` quantiles: equal shares, so narrow where weights are many.

    Its end bins are wide and flat, so it has no tail: `absmax_law` refuses it for all but small blocks.

    Args:
        w: weights, any shape, finite, at least two distinct values.
        bins: largest number of bins; ties merge bins.

    Raises:
        ValueError: a weight is not finite, or all are equal.
    """
    flat = np.sort(np.asarray(w, np.float64).ravel())
    if not np.isfinite(flat).all() or flat.size == 0 or flat[0] == flat[-1]:
        raise ValueError(f"w must be finite weights that differ, got {flat.size} weights")
    places = np.unique(np.rint(np.linspace(0, flat.size - 1, bins + 1)).astype(int))
    knots, last = np.unique(flat[places][::-1], return_index=True)
    below = (places[::-1][last]) / (flat.size - 1)
    below[0], below[-1] = 0.0, 1.0
    return Empirical(knots, below, float(flat.std()))


DENSITIES: Mapping[str, Callable[[float], Density]] = {"gaussian": Gaussian, "laplace": Laplace, "student-t": StudentT}


def density_named(name: str, scale: float) -> Density:
    """Return the density called `name` with standard deviation `scale`.

    Raises:
        ValueError: there is no such density, or the scale is not positive and finite.
    """
    if name not in DENSITIES:
        raise ValueError(f"density must be one of {', '.join(DENSITIES)}, got density={name!r}")
    return DENSITIES[name](scale)
