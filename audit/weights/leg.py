"""The weights leg: what quantization leaves of the update, tensor by tensor and in total.

In: two checkpoints with the same tensors, and names of formats. Out: a `WeightsLeg`. The share of the update that
survives nf4, where each model has its own scales:

    leg = weights_leg(open_checkpoint(Path("target")), open_checkpoint(Path("unlearned")), ["nf4-b64"])
    leg.totals[Setting("nf4-b64", "adaptive")].gain
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.kernel.simd import path_for, processor
from unforgotten.audit.mixes.mix import check_name, formats_of
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.pairing import Pairing, check_finite, pair, tensors_equal
from unforgotten.audit.weights.sums import Computed, TensorMeasured
from unforgotten.audit.weights.sums import Setting as Setting  # noqa: PLC0414
from unforgotten.theory.formats.names import Format
from unforgotten.theory.geometry.dead_zone import BinadeCounts, DeadZone, add_binades, find_dead_zone
from unforgotten.theory.laws.update import GRID_MODES, Survival, add

NARROW: Mapping[str, np.dtype[Any]] = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
GAUSSIAN_SPREAD = 2.0  # E|x|^3 / (E x^2 E|x|) of a Gaussian; 1 for an update of one size


class Progress(Protocol):
    """Told the tensor that comes next, how many are done, and how many there are."""

    def __call__(self, name: str, done: int, total: int) -> None:
        """Take note of the next tensor; called before each."""


@dataclass(frozen=True)
class TensorLeg:
    """One quantized tensor.

    Attributes:
        name: name in both checkpoints.
        shape: shape in both checkpoints.
        dtypes: dtypes (target, unlearned), as stored.
        precision: the narrowest dtype that holds every unlearned value, see `precision_of`.
        binades: counts of moved weights by magnitude.
        survival: measurements, one a setting.
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
        tensors: the matrices that every quantizer touches, in the order of their names.
        totals: sums over the tensors that a format touches, by setting.
        kept: tensors that quantizers leave alone -> whether the update changed them.
        storage_dtype: the unlearned checkpoint's dtype of most of its quantized weights.
        precision: the narrowest dtype that holds all of those; coarser than the storage dtype where a model was
            trained in bfloat16 and saved in float32.
        binades: the counts of the tensors of the storage dtype.
        dead_zone: dead zone that the binades show, at `precision`.
        computed: path, processor and ways of the measurement.
        vocabulary: embeddings and heads that a mix touches, see `audit.mixes`; they are among `kept` too.
    """

    tensors: tuple[TensorLeg, ...]
    totals: Mapping[Setting, Survival]
    kept: Mapping[str, bool]
    storage_dtype: str
    precision: str
    binades: BinadeCounts
    dead_zone: DeadZone
    computed: Computed
    vocabulary: tuple[TensorLeg, ...] = ()

    def parts(self, setting: Setting) -> list[Survival]:
        """Return the measurements of each tensor that a format touches."""
        return [t.survival[setting] for t in (*self.tensors, *self.vocabulary) if setting in t.survival]

    @property
    def quantized(self) -> Survival:
        """Sums over the matrices that every quantizer touches, in the first format: for what no format changes."""
        return add(next(iter(t.survival.values())) for t in self.tensors)

    @property
    def left_alone(self) -> dict[str, bool]:
        """The kept tensors that a format leaves alone: all but those that every one of these formats touches."""
        touched = {t.name for t in self.vocabulary if t.survival.keys() == self.totals.keys()}
        return {name: differs for name, differs in self.kept.items() if name not in touched}

    @property
    def unchanged_fraction(self) -> float:
        """Share of the quantized weights that the update left equal."""
        return self.quantized.unchanged_fraction


def weights_leg(
    target: Checkpoint,
    unlearned: Checkpoint,
    formats: Sequence[str],
    progress: Progress | None = None,
    *,
    jobs: int = 1,
    ray: str | None = None,
) -> WeightsLeg:
    """Measure every quantized tensor of a pair in every format, on adaptive and on fixed grids, in float32.

    The result is the same, to the last bit, whatever the number of jobs.

    Args:
        target: checkpoint before unlearning.
        unlearned: checkpoint after unlearning.
        formats: names of formats; a name that comes twice counts once.
        progress: function that is called before each tensor.
        jobs: processes that share the work, >= 1.
        ray: address of a Ray cluster that shares the tensors instead.

    Raises:
        ValueError: a format is unknown, or there is none.
        CheckpointError: the pair does not match, a weight is not finite, or a format cannot take a tensor.
    """
    if not formats:
        raise ValueError("formats must name at least one format, got none")
    names = pair(target, unlearned)
    asked = _formats_of(target, names, tuple(dict.fromkeys(formats)))
    vocabulary = tuple(name for name in names.kept if any(name in own for own in asked.values()))
    total = len(names.kept) + len(names.quantized) + len(vocabulary)
    kept: dict[str, bool] = {}
    for done, name in enumerate(names.kept):
        if progress is not None:
            progress(name, done, total)
        check_finite(target, name)
        check_finite(unlearned, name)
        kept[name] = not tensors_equal(target, name, unlearned, name)

    def report(name: str, done: int) -> None:
        if progress is not None:
            progress(name, len(kept) + done, total)

    from unforgotten.audit.weights.batches import Work
    from unforgotten.audit.weights.processes import measure_tensors
    from unforgotten.audit.weights.task import ways_in

    touched = (*names.quantized, *vocabulary)
    own = {name: _own(asked, name) for name in touched}
    known = tuple({fmt.name: fmt for formats in own.values() for fmt in formats}.values())
    weights = sum(math.prod(target.tensors[name].shape) * len(own[name]) for name in touched)
    work = Work(target, unlearned, known, path_for(weights), own)
    measured = measure_tensors(work, touched, report, jobs=jobs, ray=ray)
    legs = [
        _tensor_leg(target, unlearned, name, _by_asked(found, asked, name))
        for name, found in zip(touched, measured, strict=True)
    ]
    taken = [ways_in((target, unlearned), name, own[name], work.simd) for name in touched]
    ways = {
        fmt.name: dict(sorted(Counter[str](each[fmt.name] for each in taken if fmt.name in each).items()))
        for fmt in known
    }
    count = len(names.quantized)
    return _sum_up(legs[:count], legs[count:], kept, Computed(path=work.simd, processor=processor(), ways=ways))


Asked = Mapping[str, Mapping[str, Format]]
"""The format that each name of `--formats` gives to each matrix that it touches."""


def _formats_of(target: Checkpoint, names: Pairing, formats: Sequence[str]) -> Asked:
    """Return the format of each matrix, by the names that were asked for.

    Raises:
        ValueError: a name is unknown.
        CheckpointError: a mix cannot be told for this model, or leaves a matrix alone that others quantize.
    """
    for name in formats:
        check_name(name)
    shapes = {name: target.tensors[name].shape for name in (*names.quantized, *names.kept)}
    found = {}
    for name in formats:
        try:
            found[name] = formats_of(name, shapes, names.quantized)
        except ValueError as error:
            raise CheckpointError(target.source, f"must fit {name}", error) from error
    return found


def _own(asked: Asked, name: str) -> tuple[Format, ...]:
    """Return the formats that a tensor is measured in, each once."""
    return tuple({fmt.name: fmt for own in asked.values() if (fmt := own.get(name))}.values())


def _by_asked(measured: TensorMeasured, asked: Asked, name: str) -> TensorMeasured:
    """Return the measurements by the names that were asked for: a mix has those of its format for this tensor."""
    found = {
        Setting(key, grid): measured.survival[Setting(own[name].name, grid)]
        for key, own in asked.items()
        if name in own
        for grid in GRID_MODES
    }
    return replace(measured, survival=found)


def _tensor_leg(target: Checkpoint, unlearned: Checkpoint, name: str, measured: TensorMeasured) -> TensorLeg:
    info, info_new = target.tensors[name], unlearned.tensors[name]
    dtypes = info.dtype.name, info_new.dtype.name
    return TensorLeg(name, info.shape, dtypes, precision_of(measured, dtypes[1]), measured.binades, measured.survival)


def precision_of(measured: TensorMeasured, dtype: str) -> str:
    """Return the first of bfloat16 and float16 that holds every new value exactly; the storage dtype if none does.

    Args:
        measured: sums of the tensor.
        dtype: the storage dtype.
    """
    if dtype in NARROW or not (measured.in_bfloat16 or measured.in_float16):
        return dtype
    return "bfloat16" if measured.in_bfloat16 else "float16"


def value_precision(w: NDArray[Any], dtype: str) -> str:
    """Return what `precision_of` says, of one array and by numpy: what that is tested against.

    Args:
        w: weights, float32.
        dtype: the storage dtype.
    """
    if dtype in NARROW:
        return dtype
    with np.errstate(over="ignore", under="ignore"):
        for name, narrow in NARROW.items():
            if np.array_equal(w.astype(narrow).astype(np.float32), w):
                return name
    return dtype


def _sum_up(
    tensors: Sequence[TensorLeg], vocabulary: Sequence[TensorLeg], kept: Mapping[str, bool], computed: Computed
) -> WeightsLeg:
    weights_of: dict[str, int] = {}
    for t in tensors:
        weights_of[t.dtypes[1]] = weights_of.get(t.dtypes[1], 0) + math.prod(t.shape)
    storage = max(sorted(weights_of), key=lambda dtype: weights_of[dtype])
    stored = [t for t in tensors if t.dtypes[1] == storage]
    precisions = {t.precision for t in stored}
    precision = precisions.pop() if len(precisions) == 1 else storage
    binades = add_binades([t.binades for t in stored])
    legs = (*tensors, *vocabulary)
    return WeightsLeg(
        tensors=tuple(tensors),
        totals={s: add(t.survival[s] for t in legs if s in t.survival) for s in tensors[0].survival},
        kept=kept,
        storage_dtype=storage,
        precision=precision,
        binades=binades,
        dead_zone=find_dead_zone(binades, precision),
        computed=computed,
        vocabulary=tuple(vocabulary),
    )


def gain_stderr(parts: Sequence[Survival]) -> float:
    """Return the standard error of the total gain of independent tensors, under assumption U; nan without an update.

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
