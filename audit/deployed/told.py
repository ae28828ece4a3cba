"""The object `deployed` of `audit.json`, and what terminal and page say of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypedDict

from unforgotten.audit.deployed.measure import DeployedLeg, DeployedTensor
from unforgotten.audit.deployed.orders import AS_STORED, TURNED
from unforgotten.audit.deployed.stored import Artefact
from unforgotten.audit.findings.row import FindingRow, finding
from unforgotten.audit.findings.sentences import STDERRS, Finding, judge_gain, share
from unforgotten.audit.sources.notes import named, notes_of
from unforgotten.audit.weights.leg import gain_stderr

FAR = 0.5
"""Distance of a decoded matrix from the one it was made from, |Q - w| / |w|, beyond which it hardly was."""


class DeployedFile(TypedDict):
    """One quantized model, bound to its bytes."""

    source: str
    revision: str | None
    sha256: str


class DeployedType(TypedDict):
    """One type of the quantized target.

    `ours`: our format of that name; `distance`: |Q - ours| / |ours - w| on a sample of rows, 0 where both give the same
    values; None where there is no such format.
    """

    type: str
    tensors: int
    weights: int
    ours: str | None
    distance: float | None


class DeployedRow(TypedDict):
    """One matrix; a ratio is None where it has no value."""

    name: str
    type: str
    weights: int
    gain: float | None
    cosine: float | None


class Deployed(TypedDict):
    """The pair as it was really quantized.

    `length`: |D| / |delta|; `base_shift`: |Q - w| / |delta|, how far quantization moves the target itself.
    """

    target: DeployedFile
    unlearned: DeployedFile
    types: list[DeployedType]
    weights: int
    unchanged: int
    value_changes: int
    gain: float | None
    gain_stderr: float | None
    cosine: float | None
    length: float | None
    base_shift: float | None
    tensors: list[DeployedRow]
    notes: list[str]


def deployed_object(leg: DeployedLeg) -> Deployed:
    """Return the object of `audit.json`."""
    total = leg.total
    shift = math.fsum(t.shift_sq for t in leg.tensors)
    types = _types(leg.tensors)
    return Deployed(
        target=_file(leg.files[0]),
        unlearned=_file(leg.files[1]),
        types=types,
        weights=total.weights,
        unchanged=total.unchanged,
        value_changes=total.value_changes,
        gain=_finite(total.gain),
        gain_stderr=_finite(gain_stderr([t.sums for t in leg.tensors])),
        cosine=_finite(total.cosine),
        length=_root_ratio(total.surviving_sq, total.delta_sq),
        base_shift=_root_ratio(shift, total.delta_sq),
        tensors=[
            DeployedRow(
                name=t.name,
                type=t.kind,
                weights=t.sums.weights,
                gain=_finite(t.sums.gain),
                cosine=_finite(t.sums.cosine),
            )
            for t in leg.tensors
        ],
        notes=[distance_sentence(types), *_notes(leg)],
    )


def deployed_label(deployed: Deployed) -> str:
    """Return how a table names the quantized pair: deployed (Q4_K 120, Q6_K 30)."""
    counts = Counter(row["type"] for row in deployed["tensors"])
    return f"deployed ({', '.join(f'{kind} {count}' for kind, count in counts.most_common())})"


def deployed_word(deployed: Deployed) -> Finding:
    """Return the word of the quantized pair, by the rule of any format."""
    gain, stderr = deployed["gain"], deployed["gain_stderr"]
    return judge_gain(math.nan if gain is None else gain, math.nan if stderr is None else stderr)


def deployed_findings(deployed: Deployed) -> list[FindingRow]:
    """Return the finding that the quantized models themselves lost the update, or a part of it; none where they did not."""
    word, gain, stderr = deployed_word(deployed), deployed["gain"], deployed["gain_stderr"]
    if word not in ("swallowed", "partly swallowed") or gain is None:
        return []
    margin = STDERRS * (stderr or 0.0)
    lost = "the update is swallowed" if word == "swallowed" else "part of the update is swallowed"
    row = finding(
        "swallowed",
        "error" if word == "swallowed" else "warning",
        f"{deployed_label(deployed)}: gain {gain:.2f} ± {margin:.2f}: {lost} in the quantized models themselves.",
        measure="gain",
        effect=gain,
        interval=(gain - margin, gain + margin),
        format=deployed_label(deployed),
    )
    return [row]


def distance_sentence(types: Sequence[DeployedType]) -> str:
    """Return the sentence on how far each quantized type is from our own format of that name."""
    told = []
    for row in types:
        if row["ours"] is None:
            told.append(f"{row['type']} none of ours")
        elif row["distance"] is not None:
            told.append(f"{row['type']} {row['distance']:.2f} of {row['ours']}'s own")
    return (
        "Distance of the deployed target from our own format of that name, as a share of that format's rounding error: "
        f"{', '.join(told) or 'none of its types is quantized'}."
    )


def _types(tensors: Sequence[DeployedTensor]) -> list[DeployedType]:
    found = []
    for kind, ours in dict.fromkeys((t.kinds[0], t.ours) for t in tensors):
        own = [t for t in tensors if (t.kinds[0], t.ours) == (kind, ours)]
        theirs_sq, ours_sq = (math.fsum(getattr(t, key) for t in own) for key in ("theirs_sq", "ours_sq"))
        found.append(
            DeployedType(
                type=kind,
                tensors=len(own),
                weights=sum(t.sums.weights for t in own),
                ours=ours,
                distance=None if ours is None else _root_ratio(theirs_sq, ours_sq),
            )
        )
    return found


def _notes(leg: DeployedLeg) -> Iterator[str]:
    weights = leg.total.weights + sum(leg.missing.values())
    kept = [t for t in leg.tensors if not t.coded]
    if kept:
        types = ", ".join(sorted({t.kind for t in kept}))
        part = share(sum(t.sums.weights for t in kept) / weights)
        yield f"{part} of the weights stand in tensors that the deployed files keep as {types}: {_names(kept)}."
    if leg.missing:
        part = share(sum(leg.missing.values()) / weights)
        yield (
            f"{part} of the weights stand in tensors that the deployed files do not have under a known name; they are not "
            f"in the gain of the deployed pair: {named(list(leg.missing))}."
        )
    others = leg.files[0].others
    if others:
        shown = named([f"{name} {kind}" for name, kind in others.items()])
        yield f"Also quantized in the deployed files, and not in the gain of the deployed pair: {shown}."
    turned = [t for t in leg.tensors if t.order not in (AS_STORED, TURNED)]
    if turned:
        yield (
            f"{len(turned)} matrices of queries and keys stand in the order of llama.cpp and were put back, in the order in "
            f"which they are nearest to the target: {_names(turned)}."
        )
    mixed = [t for t in leg.tensors if t.kinds[0] != t.kinds[1]]
    if mixed:
        yield f"{len(mixed)} tensors are stored by another type in the two deployed files: {_names(mixed)}."
    far = [t for t in leg.tensors if t.shift_sq > FAR**2 * t.weights_sq]
    if far:
        yield (
            f"{len(far)} deployed tensors are further from the target's than {FAR:.0%} of its length; they were hardly made "
            f"from it as it is, and their gain may mean nothing: {_names(far)}."
        )
    if leg.strange:
        yield (
            f"{len(leg.strange)} norms are others in the deployed files than in the models, by up to {max(leg.strange.values()):.0%} of their "
            f"largest weight, and no scales explain it: the files may be of other models: {named(list(leg.strange))}."
        )
    yield from _scaled_notes(leg)
    yield from notes_of(*(file.checkpoint for file in leg.files))


def _scaled_notes(leg: DeployedLeg) -> Iterator[str]:
    by_norm, by_fit = ([t for t in leg.tensors if t.scaled == by] for by in ("norm", "fit"))
    what = "whose channels were scaled one by one, as AWQ and SmoothQuant do, are compared without those scales"
    if by_norm:
        yield f"{len(by_norm)} deployed tensors {what}, which are what the norm before them was divided by: {_names(by_norm)}."
    if by_fit:
        most = math.fsum(t.scaling_sq for t in by_fit) / (math.fsum(t.sums.delta_sq for t in by_fit) or math.inf)
        yield (
            f"{len(by_fit)} deployed tensors {what}, which were fitted to the weights: that may take their gain for up to "
            f"{most:.3f} nearer to 1 than it is: {_names(by_fit)}."
        )


def _names(tensors: Sequence[DeployedTensor]) -> str:
    return named([t.name for t in tensors])


def _file(file: Artefact) -> DeployedFile:
    checkpoint = file.checkpoint
    return DeployedFile(source=str(checkpoint.source), revision=checkpoint.revision, sha256=checkpoint.sha256())


def _root_ratio(top: float, bottom: float) -> float | None:
    """Return the ratio of two lengths by their squares; None where the lower one is 0."""
    return math.sqrt(top / bottom) if bottom else None


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
