"""The gain that theory expects once it knows how the weights moved, but nothing of where they lie in their cells.

No forecast: it takes the motion by quarter binade, the histogram of the weights and the blocks' absmax from the probe's
rows, and leaves T6 and the format to the theory. Where it meets the measured gain, the format alone explains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.findings.probe import Run, Sample, fits
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.formats.reference import to_blocks
from unforgotten.theory.geometry.motion_fit import Moves, observed_moves
from unforgotten.theory.laws.absmax import observed_absmax
from unforgotten.theory.laws.block_law import Expected, combine
from unforgotten.theory.laws.densities import Empirical, empirical
from unforgotten.theory.laws.predict import predict_moves

MOST_TENSORS = 16  # those whose update is longest in the probe's rows
HISTOGRAM_BINS = 256
ABSMAX_NODES = 12


@dataclass(frozen=True)
class Motion:
    """What the probe's rows of one tensor show of its weights and of how they moved.

    Attributes:
        weights: number of weights of the tensor.
        runs: runs of the probe in the tensor.
        w: weights of the runs before, float64.
        density: histogram of those weights.
        moves: motion of the weights by quarter binade.
    """

    weights: int
    runs: tuple[Run, ...]
    w: NDArray[Any]
    density: Empirical
    moves: Moves


def observe(samples: Sequence[Sample]) -> list[Motion]:
    """Return the motion of the MOST_TENSORS tensors of longest update, without those whose weights are all equal."""
    chosen = sorted(samples, key=_square, reverse=True)[:MOST_TENSORS]
    return [_motion(sample) for sample in chosen if _square(sample) and _spread(sample)]


def motion_gain(motions: Sequence[Motion], name: str) -> float | None:
    """Return G = sum n E[D delta] / sum n E[delta^2] over tensors; None where nothing moves or rows are too few.

    Args:
        motions: motions from `observe`.
        name: name of an absmax format.

    Raises:
        ValueError: the theory has no law for the format.
    """
    fmt = format_named(name)
    told = [m for m in motions if all(fits(fmt, run) for run in m.runs)]
    whole = sum(m.weights for m in told)
    if not whole:
        return None
    gain = combine([(m.weights / whole, _expected(m, fmt)) for m in told]).gain
    return gain if math.isfinite(gain) else None


def _square(sample: Sample) -> float:
    return math.fsum(float(np.square(run.w_new.astype(np.float64) - run.w).sum()) for run in sample.runs)


def _spread(sample: Sample) -> bool:
    return len({float(x) for run in sample.runs for x in (run.w.min(), run.w.max())}) > 1


def _motion(sample: Sample) -> Motion:
    w = np.concatenate([run.w for run in sample.runs]).astype(np.float64)
    delta = np.concatenate([run.w_new for run in sample.runs]).astype(np.float64) - w
    density, moves = empirical(w, HISTOGRAM_BINS), observed_moves(w, delta)
    return Motion(math.prod(sample.shape), sample.runs, w, density, moves)


def _expected(motion: Motion, fmt: Format) -> Expected:
    blocks = to_blocks(motion.w, fmt)
    law = observed_absmax(np.abs(blocks).max(axis=1), blocks.shape[1], nodes=ABSMAX_NODES)
    return predict_moves(fmt, motion.density, law, motion.moves)
