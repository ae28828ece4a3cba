"""What is left of the update between two quantized models, from their decoded weights, one tensor in memory at a time.

With w and w' the weights of target and unlearned model, Q and Q' those of the quantized files: delta = w' - w, D = Q' - Q.
No assumption on the quantizer is made, so all of it holds of calibrated ones too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.deployed.orders import nearest_order
from unforgotten.audit.deployed.stored import Artefact, Pair, Stored
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.laws.update import Survival, add

Array = NDArray[Any]
CHUNK_WEIGHTS = 1 << 20
OURS_WEIGHTS = 1 << 18
"""Weights of a tensor, of its first rows, that the distance to our format is taken from; whole where its scale is one of all."""


@dataclass(frozen=True)
class DeployedTensor:
    """One matrix in both quantized models.

    Attributes:
        name: name in the models.
        kinds: types that it is stored as in (target, unlearned).
        coded: whether either is a quantized type.
        ours: our format of the target's type; None where there is none.
        order: name of the order in which the target's rows stand in the file.
        sums: sums over its weights; what is no part of decoded values is counted as the value changes.
        weights_sq, shift_sq: squared lengths of w and of Q - w.
        theirs_sq, ours_sq: squared distances of Q and of w from our own Q(w), on a sample of the rows; 0 without one.
        channel_spread: standard deviation, over columns, of the factor by which a column of Q is nearest to that of w.
    """

    name: str
    kinds: tuple[str, str]
    coded: bool
    ours: str | None
    order: str
    sums: Survival
    weights_sq: float
    shift_sq: float
    theirs_sq: float
    ours_sq: float
    channel_spread: float

    @property
    def kind(self) -> str:
        """Type as a row names it: one, or both where they differ."""
        return self.kinds[0] if self.kinds[0] == self.kinds[1] else f"{self.kinds[0]}→{self.kinds[1]}"


@dataclass(frozen=True)
class DeployedLeg:
    """Two quantized models beside the pair they were made from.

    Attributes:
        files: the quantized target and the quantized unlearned model.
        tensors: the matrices that both have, in the order of their names.
        missing: weights of each matrix that one of them does not have, by name.
    """

    files: tuple[Artefact, Artefact]
    tensors: tuple[DeployedTensor, ...]
    missing: Mapping[str, int]

    @property
    def total(self) -> Survival:
        """Sums over the tensors."""
        return add(t.sums for t in self.tensors)


def measure_deployed(
    pair: Pair,
    files: tuple[Artefact, Artefact],
    names: Sequence[str],
    progress: Callable[[str, int, int], object] | None = None,
) -> DeployedLeg:
    """Measure every matrix that both quantized models have.

    Args:
        pair: target and unlearned model.
        files: the quantized target and the quantized unlearned model, see `open_deployed`.
        names: names of the matrices that every quantizer touches; embeddings and heads that both files hold come with them.
        progress: function that is called before each tensor.

    Raises:
        CheckpointError: no matrix is in both files, or a decoded value is not finite.
    """
    held = {name: None for name in files[0].stored if name in files[1].stored}
    both = [name for name in (*names, *sorted(held.keys() - set(names))) if name in held]
    if not both:
        rule = "must have a matrix that the quantized target has"
        raise CheckpointError(files[1].checkpoint.source, rule, "none")
    found = []
    for done, name in enumerate(both):
        if progress is not None:
            progress(name, done, len(both))
        found.append(_measure(pair, name, (files[0].stored[name], files[1].stored[name])))
    missing = {name: math.prod(pair[0].tensors[name].shape) for name in names if name not in both}
    return DeployedLeg(files, tuple(found), missing)


def _measure(pair: Pair, name: str, stored: tuple[Stored, Stored]) -> DeployedTensor:
    w, w_new = (_weights(checkpoint, name) for checkpoint in pair)
    order, q = _values(name, stored[0], w)
    _, q_new = _values(name, stored[1], w_new)
    parts = [_sums(*(x.reshape(-1)[i : i + CHUNK_WEIGHTS] for x in (w, w_new, q, q_new))) for i in _starts(w)]
    theirs, ours = (0.0, 0.0) if stored[0].ours is None else _beside_ours(w, q, stored[0].ours)
    return DeployedTensor(
        name=name,
        kinds=(stored[0].kind, stored[1].kind),
        coded=stored[0].coded or stored[1].coded,
        ours=stored[0].ours,
        order=order,
        sums=add(part for part, _, _ in parts),
        weights_sq=math.fsum(square for _, square, _ in parts),
        shift_sq=math.fsum(shift for _, _, shift in parts),
        theirs_sq=theirs,
        ours_sq=ours,
        channel_spread=channel_spread(w, q),
    )


def channel_spread(w: Array, q: Array) -> float:
    """Return the standard deviation over columns of <q, w> / <w, w>; columns of zeros count for none.

    Rounding alone leaves its relative error over the root of the rows; AWQ and SmoothQuant scale each column by itself.
    """
    square = np.einsum("ij,ij->j", w, w, dtype=np.float64)
    dot = np.einsum("ij,ij->j", q, w, dtype=np.float64)
    return float(np.std(dot[square > 0] / square[square > 0])) if square.any() else 0.0


def _weights(checkpoint: Checkpoint, name: str) -> Array:
    return np.asarray(checkpoint.read(name), np.float32)


def _starts(w: Array) -> Iterable[int]:
    return range(0, w.size, CHUNK_WEIGHTS)


def _values(name: str, stored: Stored, w: Array) -> tuple[str, Array]:
    """Return the decoded matrix in the order of the model's rows, and the name of the order it stands in."""
    with np.errstate(all="ignore"):  # a value that is not finite is refused by name
        values = stored.values()
    if not np.isfinite(values).all():
        raise CheckpointError(stored.path, "must be finite", "nan or inf", tensor=name)
    order, put_back = nearest_order(w, values, stored.orders)
    return order, np.ascontiguousarray(put_back(values))


def _sums(w: Array, w_new: Array, q: Array, q_new: Array) -> tuple[Survival, float, float]:
    """Return the sums over a chunk, and the squared lengths of w and of Q - w."""
    before = w.astype(np.float64)
    delta, shift = w_new - before, q - before
    surviving = q_new.astype(np.float64) - q
    changes = int(np.count_nonzero(q != q_new))
    sums = Survival(
        weights=w.size,
        unchanged=int(np.count_nonzero(delta == 0)),
        code_flips=changes,
        value_changes=changes,
        expected_flips=0.0,
        flips_variance=0.0,
        delta_sq=float(np.square(delta).sum()),
        surviving_sq=float(np.square(surviving).sum()),
        dot=float((surviving * delta).sum()),
        positions=(),
    )
    return sums, float(np.square(before).sum()), float(np.square(shift).sum())


def _beside_ours(w: Array, q: Array, ours: str) -> tuple[float, float]:
    """Return the squared distances of the file's values and of the weights from what our own format gives."""
    fmt = format_named(ours)
    whole = fmt.block == "tensor" or fmt.tensor_range > 0
    rows = len(w) if whole else max(1, OURS_WEIGHTS // w.shape[1])
    own = round_trip(w[:rows], fmt).astype(np.float64)
    return float(np.square(q[:rows] - own).sum()), float(np.square(w[:rows] - own).sum())
