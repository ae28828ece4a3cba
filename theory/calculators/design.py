"""Design equations: the lr, the LoRA rank or the concentration that a wanted gain and cosine need; the phase diagram.

`jit` and `vmap` evaluate many learning rates at once, `grad` gives slopes and Newton steps. Everything is float64, set
for the duration of a call. Needs jax: `pip install 'unforgotten[verify]'`.

Takes a format and a training run, traced by `traced.setup`, or the size of an update and a step; gives gains and
cosines at many learning rates, and the lr, rank or share that meets a wish.

>>> round(needed_rms(0.9, step=1.0), 3)
0.843
>>> round(largest_share(rms=0.1, cosine=0.9, step=1.0), 3)
0.014
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from unforgotten.theory.calculators.traced import Setup, cosine_of, gain_of, gaussian_energy, setup
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.laws.absmax import AbsmaxLaw, absmax_law
from unforgotten.theory.laws.densities import Gaussian

LR_RANGE = (2.0**-22, 2.0**6)  # in standard deviations: where a wanted survival is looked for, octave by octave
REFINEMENTS = 9  # each by a factor of 28: an octave to 2^-43
NEWTON_STEPS = 40
TRACED = 5  # fields of a Setup that can vary without compiling again
QUADRATURE_SPACING = 1 / 16  # of the absmax law in a diagram, see `bound`
LEAST_SHARE = 1e-7  # of the blocks: rarer absmax values are left out of a diagram


def gains(lrs: ArrayLike, s: Setup) -> NDArray[Any]:
    """Return the gain E[D delta] / E[delta^2] at every lr, (n,); nan where nothing moves."""
    return _every(gain_of, lrs, s)


def cosines(lrs: ArrayLike, s: Setup) -> NDArray[Any]:
    """Return the cosine E[D delta] / sqrt(E[D^2] E[delta^2]) at every lr, (n,); nan where nothing moves or survives."""
    return _every(cosine_of, lrs, s)


def gain_slopes(lrs: ArrayLike, s: Setup) -> NDArray[Any]:
    """Return d gain / d log lr, (n,), where no binade starts or stops to move: how much a larger lr would buy."""
    return _every(_slope_of, lrs, s)


def _slope_of(lr: Any, s: Setup) -> Any:
    slope: Callable[[Any, Setup], Any] = jax.grad(gain_of)
    return lr * slope(lr, s)


def _every(law: Callable[[Any, Setup], Any], lrs: ArrayLike, s: Setup) -> NDArray[Any]:
    points = np.asarray(lrs, np.float64)
    if not (points.ndim == 1 and np.isfinite(points).all() and (points > 0).all()):
        raise ValueError(f"lrs must be a vector of positive, finite numbers, got lrs={lrs!r}")
    with jax.enable_x64(True):
        return np.asarray(_compiled(law, points, s[:TRACED], s[TRACED:]))


@partial(jax.jit, static_argnums=(0, 3))
def _compiled(law: Callable[[Any, Setup], Any], lrs: Any, traced: tuple[Any, ...], fixed: tuple[Any, ...]) -> Any:
    """Evaluate a law at every lr; compiled once for each law, number of levels, storage and number of lr."""
    return jax.vmap(lambda lr: law(lr, Setup(*traced, *fixed)))(lrs)


def smallest_lr(s: Setup, *, gain: float | None = None, cosine: float | None = None) -> float:
    """Return the crossing inside of the first octave at whose upper end both wishes are met; inf if there is none.

    A gain that rises, falls and rises again within one octave can hide a smaller one.

    Args:
        s: result of `setup`.
        gain: least gain wanted, in (0, 1).
        cosine: least cosine wanted, in (0, 1).

    Raises:
        ValueError: nothing is wanted, or a wish is out of its range.
    """
    laws: Mapping[str, Callable[[Any, Setup], Any]] = {"gain": gain_of, "cosine": cosine_of}
    wishes = {k: v for k, v in (("gain", gain), ("cosine", cosine)) if v is not None}
    if not wishes:
        raise ValueError("gain or cosine must be wanted, got neither")
    for name, value in wishes.items():
        _in_unit(name, value)

    def met(lrs: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(invalid="ignore"):  # nan, where nothing moves, meets nothing
            return np.all([_every(laws[k], lrs, s) >= v for k, v in wishes.items()], axis=0)

    octaves = np.arange(math.log2(LR_RANGE[0]), math.log2(LR_RANGE[1]) + 1)
    points = s.std * 2.0**octaves
    first = met(points)
    if not first.any():
        return math.inf
    high = float(points[np.argmax(first)])
    low = high / 2
    for _ in range(REFINEMENTS):
        points = np.linspace(low, high, len(octaves))
        first = met(points)
        first[-1] = True
        at = max(1, int(np.argmax(first)))
        low, high = float(points[at - 1]), float(points[at])
    return high


def gaussian_cosine(rms: ArrayLike, step: float) -> NDArray[Any]:
    """Return rms / sqrt(E[D^2]), delta ~ N(0, rms^2), by U: ~ sqrt(rms/step) below a step, 1 - step^2/12 rms^2 above.

    Args:
        rms: root mean square of the update, > 0, any shape, in the units of the weights.
        step: Delta > 0; on a non-uniform grid the effective step.
    """
    size = np.asarray(rms, np.float64)
    with jax.enable_x64(True):
        law: Callable[[Any], Any] = jax.vmap(lambda x: x / jnp.sqrt(gaussian_energy(x, step)))
        return np.asarray(law(jnp.asarray(size.ravel()))).reshape(size.shape)


def needed_rms(cosine: float, step: float) -> float:
    """Return the rms of a Gaussian update whose cosine is `cosine`: Newton's method in log rms, from below.

    log cosine is concave and rises in log rms, and E[D^2] >= step E|delta| puts the start, cosine^2 step sqrt(2 / pi),
    on the left: no step passes the root.

    Args:
        cosine: cosine wanted, in (0, 1).
        step: Delta > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _in_unit("cosine", cosine)
    _positive(step=step)

    with jax.enable_x64(True):
        x = 2 * math.log(cosine) + math.log(2 / math.pi) / 2
        for _ in range(NEWTON_STEPS):
            reached, slope = (float(y) for y in _log_cosine_and_slope(x))
            x += max(0.0, math.log(cosine) - reached) / slope
    return math.exp(x) * step


@jax.jit
@jax.value_and_grad
def _log_cosine_and_slope(log_rms: Any) -> Any:
    """Return the log cosine of a Gaussian update and its slope, at a log rms in steps."""
    return log_rms - jnp.log(gaussian_energy(jnp.exp(log_rms), 1.0)) / 2


def largest_share(rms: float, cosine: float, step: float) -> float:
    """Return rho = min(1, (rms / needed_rms)^2), the share on which a Gaussian update of this length has the cosine.

    T9 with Gaussian entries: on a share rho they have rms / sqrt(rho). A smaller share has a larger cosine.

    Args:
        rms: |delta|_2 / sqrt(N) over all weights, > 0.
        cosine: cosine wanted, in (0, 1).
        step: Delta > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _positive(rms=rms)
    return min(1.0, (rms / needed_rms(cosine, step)) ** 2)


def largest_rank(cosine: float, step: float, *, alpha: float, b_moved: float, a_rms: float) -> int:
    """Return floor((alpha b a / needed_rms)^2), the largest LoRA rank with the cosine; 0 if not even rank 1 has it.

    delta = alpha / r B A, B's entries +-b (sign-like steps from 0) and A's independent Gaussian: every entry of delta is
    N(0, (alpha b a)^2 / r). At fixed alpha a larger rank makes a smaller, noisier update; with rsLoRA's
    alpha / sqrt(r) its size does not depend on the rank, and every rank or none will do.

    Args:
        cosine: cosine wanted, in (0, 1).
        step: Delta > 0, of the merged weights' format.
        alpha: lora_alpha, > 0.
        b_moved: b, distance that each entry of B has moved, about lr times steps, > 0.
        a_rms: a, root mean square of A, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    _positive(alpha=alpha, b_moved=b_moved, a_rms=a_rms)
    return math.floor((alpha * b_moved * a_rms / needed_rms(cosine, step)) ** 2)


def phase_diagram(
    lr_over_std: ArrayLike,
    formats: Sequence[str],
    dtypes: Sequence[str],
    *,
    std: float,
    steps: int,
    columns: int = 4096,
) -> NDArray[Any]:
    """Return the gain at every (dtype, format, lr / std), nan where nothing moves: both sides of the dead zone's edge.

    Where the edge lies inside the first threshold nothing crosses and the gain is 0; just beyond, the weights that
    move are those next to a threshold, and it passes 1; far beyond, or with float32, it is near 1. The grid is fixed:
    an update of the size of the absmax is clipped, and its gain falls again, where an adaptive grid would follow it.

    Args:
        lr_over_std: ratios lr / std, ascending, (n,).
        formats: names of absmax formats of blocks.
        dtypes: names of storage dtypes.
        std: standard deviation of Gaussian weights, > 0. It matters where a dtype has few binades.
        steps: number of steps T >= 1.
        columns: weights in a row, for formats without a block size.

    Returns:
        (dtypes, formats, n).
    """
    lrs = np.asarray(lr_over_std, np.float64) * std
    rows = []
    for dtype in dtypes:
        for name in formats:
            fmt = format_named(name)
            law = _common(absmax_law(Gaussian(std), fmt.block_size or columns, spacing=QUADRATURE_SPACING))
            rows.append(gains(lrs, setup(fmt, law, std=std, steps=steps, dtype=dtype)))
    return np.reshape(rows, (len(dtypes), len(formats), lrs.size))


def _common(law: AbsmaxLaw) -> AbsmaxLaw:
    kept = law.weights > LEAST_SHARE
    return AbsmaxLaw(law.values[kept], law.weights[kept] / law.weights[kept].sum(), law.size)


def _in_unit(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1) to be wanted, got {name}={value!r}")


def _positive(**sizes: float) -> None:
    for name, value in sizes.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {name}={value!r}")
