"""The weights leg: what quantization leaves of the update, tensor by tensor and in total."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.checkpoints import Checkpoint
from unforgotten.audit.headers import CheckpointError
from unforgotten.audit.pairing import check_finite, pair
from unforgotten.theory.dead_zone import (
    BinadeCounts,
    DeadZone,
    add_binades,
    count_binades,
    find_dead_zone,
)
from unforgotten.theory.formats import Format, format_named
from unforgotten.theory.update import GRID_MODES, GridMode, Survival, add, survival

NARROW: Mapping[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
GAUSSIAN_SPREAD = 2.0  # E|x|^3 / (E x^2 E|x|) of a Gaussian; 1 for an update of one size


class Progress(Protocol):
    """Told the tensor that comes next, how many are done, and how many there are."""

    def __call__(self, name: str, done: int, total: int) -> None:
        """Called before each tensor."""


class Setting(NamedTuple):
    """One way to quantize the pair."""

    format: str
    grid: GridMode


@dataclass(frozen=True)
class TensorLeg:
    """One quantized tensor.

    Attributes:
        name: in both checkpoints.
        shape: of both.
        dtypes: (target, unlearned), as stored.
        precision: the narrowest dtype that holds every unlearned value, see `value_precision`.
        binades: moved weights by magnitude.
        survival: one measurement a setting.
    """

    name: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    precision: str
    binades: BinadeCounts
    survival: Mapping[Setting, Survival]


@dataclass(frozen=True)
class WeightsLeg:
    """The weights leg of a pair.

    Attributes:
        tensors: the quantized tensors, in the order of their names.
        totals: sums over them, by setting.
        kept: tensors that quantizers leave alone -> whether the update changed them.
        storage_dtype: the unlearned checkpoint's dtype of most of its quantized weights.
        precision: the narrowest dtype that holds all of those; coarser than the storage dtype where a model was
            trained in bfloat16 and saved in float32.
        binades: the counts of the tensors of the storage dtype.
        dead_zone: what the binades show, at `precision`.
    """

    tensors: tuple[TensorLeg, ...]
    totals: Mapping[Setting, Survival]
    kept: Mapping[str, bool]
    storage_dtype: str
    precision: str
    binades: BinadeCounts
    dead_zone: DeadZone

    @property
    def unchanged_fraction(self) -> float:
        """Share of the quantized weights that the update left equal."""
        return next(iter(self.totals.values())).unchanged_fraction


def weights_leg(
    target: Checkpoint,
    unlearned: Checkpoint,
    formats: Sequence[str],
    progress: Progress | None = None,
) -> WeightsLeg:
    """Measure every quantized tensor of a pair in every format, on adaptive and on fixed grids, in float32.

    Args:
        target: before unlearning.
        unlearned: after it.
        formats: names of formats; a name that comes twice counts once.
        progress: called before each tensor.

    Raises:
        ValueError: a format is unknown, or there is none.
        CheckpointError: the pair does not match, a weight is not finite, or a format cannot take a tensor.
    """
    if not formats:
        raise ValueError("formats must name at least one format, got none")
    known = [format_named(name) for name in dict.fromkeys(formats)]
    names = pair(target, unlearned)
    total = len(names.kept) + len(names.quantized)
    kept: dict[str, bool] = {}
    tensors: list[TensorLeg] = []
    for done, name in enumerate((*names.kept, *names.quantized)):
        if progress is not None:
            progress(name, done, total)
        check_finite(target, name)
        check_finite(unlearned, name)
        if done < len(names.kept):
            kept[name] = not np.array_equal(target.read(name), unlearned.read(name))
        else:
            tensors.append(_tensor_leg(target, unlearned, name, known))
    return _sum_up(tensors, kept)


def _tensor_leg(
    target: Checkpoint, unlearned: Checkpoint, name: str, formats: Sequence[Format]
) -> TensorLeg:
    w, w_new = (np.asarray(c.read(name), np.float32) for c in (target, unlearned))
    measured: dict[Setting, Survival] = {}
    for fmt in formats:
        for grid in GRID_MODES:
            try:
                measured[Setting(fmt.name, grid)] = survival(w, w_new, fmt, grid)
            except ValueError as error:
                path = unlearned.tensors[name].path
                raise CheckpointError(path, f"must fit {fmt.name}", error, tensor=name) from error
    dtypes = target.tensors[name].dtype.name, unlearned.tensors[name].dtype.name
    precision = value_precision(w_new, dtypes[1])
    return TensorLeg(name, w.shape, dtypes, precision, count_binades(w, w_new), measured)


def value_precision(w: NDArray[Any], dtype: str) -> str:
    """The first of bfloat16 and float16 that holds every value of `w` exactly; `dtype` if none does.

    Args:
        w: float32.
        dtype: the storage dtype.
    """
    if dtype in NARROW:
        return dtype
    with np.errstate(over="ignore", under="ignore"):
        for name, narrow in NARROW.items():
            if np.array_equal(w.astype(narrow).astype(np.float32), w):
                return name
    return dtype


def _sum_up(tensors: Sequence[TensorLeg], kept: Mapping[str, bool]) -> WeightsLeg:
    weights_of: dict[str, int] = {}
    for t in tensors:
        weights_of[t.dtypes[1]] = weights_of.get(t.dtypes[1], 0) + math.prod(t.shape)
    storage = max(sorted(weights_of), key=lambda dtype: weights_of[dtype])
    stored = [t for t in tensors if t.dtypes[1] == storage]
    precisions = {t.precision for t in stored}
    precision = precisions.pop() if len(precisions) == 1 else storage
    binades = add_binades([t.binades for t in stored])
    settings = tensors[0].survival
    return WeightsLeg(
        tensors=tuple(tensors),
        totals={s: add(t.survival[s] for t in tensors) for s in settings},
        kept=kept,
        storage_dtype=storage,
        precision=precision,
        binades=binades,
        dead_zone=find_dead_zone(binades, precision),
    )


def gain_stderr(parts: Sequence[Survival]) -> float:
    """Standard error of the total gain of independent tensors, under assumption U; nan without an update.

    Var(G) = sum delta_i^2 Var(D_i) / (sum delta_i^2)^2, with E[D_i^2] proportional to |delta_i| (T8). In a tensor of
    n moved weights the sum is then GAUSSIAN_SPREAD |D|^2 |delta|^2 / n: right for a Gaussian update, cautious for one
    of a single size, too small for heavier tails than a Gaussian's.
    """
    delta_sq = math.fsum(p.delta_sq for p in parts)
    if not delta_sq:
        return math.nan
    terms = (
        GAUSSIAN_SPREAD * p.surviving_sq * p.delta_sq / (p.weights - p.unchanged)
        for p in parts
        if p.weights > p.unchanged
    )
    return math.sqrt(math.fsum(terms)) / delta_sq
