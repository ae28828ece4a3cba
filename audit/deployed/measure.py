"""What is left of the update between two quantized models, from their decoded weights, one tensor in memory at a time.

With w and w' the weights of target and unlearned model, Q and Q' those of the quantized files: delta = w' - w, D = Q' - Q.
No assumption on the quantizer is made, so all of it holds of calibrated ones too. Where one scaled the channels, Q and Q' are
without the scales, see `scales`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.deployed.orders import nearest_order
from unforgotten.audit.deployed.scales import By, Undone, share_of_scaling, without_scales
from unforgotten.audit.deployed.stored import Artefact, Pair, Stored
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip
from unforgotten.theory.laws.update import Survival, add

Array = NDArray[Any]
CHUNK_WEIGHTS = 1 << 20
LAYER = re.compile(r"\.\d+\.")
ROUNDED = 2.0**-7
"""Change of a norm's weight, as a share of it, that is no scale: what bfloat16 rounds by, twice."""
STRANGE = 0.1
"""The same, where no scale is found: smaller ones may be too small to see."""
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
        scaled: how the scales of its channels were undone, see `Undone`; "" where it had none.
        scaling_sq: squared length of the part of the update that a fit of those scales cannot tell from them; 0 without one.
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
    scaled: By
    scaling_sq: float

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
        strange: largest change of each norm that is another in a file than in its model, as a share of its largest weight, by name;
            those of layers without a scaled matrix, where nothing explains it.
    """

    files: tuple[Artefact, Artefact]
    tensors: tuple[DeployedTensor, ...]
    missing: Mapping[str, int]
    strange: Mapping[str, float]

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
        found.append(_measure(pair, name, files))
    missing = {name: math.prod(pair[0].tensors[name].shape) for name in names if name not in both}
    return DeployedLeg(files, tuple(found), missing, _strange(pair, files, found))


def _strange(pair: Pair, files: tuple[Artefact, Artefact], found: Sequence[DeployedTensor]) -> dict[str, float]:
    """Return how far norms of the files are from the models', of those that no scaled matrix of their layer explains."""
    scaled = {_layer_of(t.name) for t in found if t.scaled}
    told: dict[str, float] = {}
    for model, file in zip(pair, files, strict=True):
        for norm, own in file.norms.items():
            if _layer_of(norm) in scaled:
                continue
            ours, theirs = (np.asarray(x, np.float64) for x in (model.read(norm), file.checkpoint.read(own)))
            change = float(np.abs(theirs - ours).max(initial=0.0) / (np.abs(ours).max(initial=0.0) or 1.0))
            if not change <= STRANGE:  # nan is strange, too
                told[norm] = max(change, told.get(norm, 0.0))
    return told


def _layer_of(name: str) -> str:
    """Return the part of a name up to the number of its layer; all of it where it has none."""
    at = LAYER.search(name)
    return name if at is None else name[: at.end()]


def _measure(pair: Pair, name: str, files: tuple[Artefact, Artefact]) -> DeployedTensor:
    w, w_new = (_weights(checkpoint, name) for checkpoint in pair)
    stored = files[0].stored[name], files[1].stored[name]
    order, q = _values(name, stored[0], w)
    _, q_new = _values(name, stored[1], w_new)
    without = without_scales(w, q, norms_of(name, pair[0], files[0]))
    without_new = without_scales(w_new, q_new, norms_of(name, pair[1], files[1]))
    theirs, ours = (0.0, 0.0) if stored[0].ours is None else _beside_ours(w, q, without, stored[0].ours)
    four = w, w_new, without.values, without_new.values
    parts = [_sums(*(x.reshape(-1)[i : i + CHUNK_WEIGHTS] for x in four)) for i in _starts(w)]
    ways = {without.by, without_new.by}
    scaled: By = "fit" if "fit" in ways else "norm" if "norm" in ways else ""
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
        scaled=scaled,
        scaling_sq=share_of_scaling(w, w_new - w) if scaled == "fit" else 0.0,
    )


def norms_of(name: str, model: Checkpoint, file: Artefact) -> dict[str, Array]:
    """Return by name what a file divided each norm of the layer of a matrix by, float64; those that only rounding moved are left out.

    Gemma adds 1 to the weights of its norms, so the quotient with 1 added comes as well.
    """
    found: dict[str, Array] = {}
    for norm in _norms_beside(name, file.norms):
        with np.errstate(all="ignore"):
            ours = np.asarray(model.read(norm), np.float64)
            theirs = np.asarray(file.checkpoint.read(file.norms[norm]), np.float64)
            for added in (0.0, 1.0):
                quotient = (ours + added) / (theirs + added)
                if np.isfinite(quotient).all() and np.abs(quotient - 1).max() > ROUNDED:
                    found[f"{norm} + {added:.0f}"] = quotient
    return found


def _norms_beside(name: str, norms: Iterable[str]) -> list[str]:
    """Return the norms of the layer of a matrix: those that share its name up to the number of the layer."""
    layer = _layer_of(name)
    return [norm for norm in norms if layer != name and norm.startswith(layer)]


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


def _beside_ours(w: Array, q: Array, without: Undone, ours: str) -> tuple[float, float]:
    """Return the squared distances of the file's values and of the weights, as scaled, from what our own format gives."""
    fmt = format_named(ours)
    high = 1 if fmt.tile is None else fmt.tile[0]
    whole = fmt.of_tensor and fmt.tile is None
    rows = len(w) if whole else -(-max(1, OURS_WEIGHTS // w.shape[1]) // high) * high
    scaled = w[:rows]
    if without.by:
        scaled = (scaled * without.rows[:rows, None] * without.columns).astype(np.float32)
    own = round_trip(scaled, fmt).astype(np.float64)
    return float(np.square(q[:rows] - own).sum()), float(np.square(scaled - own).sum())
