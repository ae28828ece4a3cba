"""The result object of an audit, as `audit.json` holds it, and its rows a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal, TypedDict

from scipy.stats import kstwobign

from unforgotten.audit.checkpoints import Checkpoint
from unforgotten.audit.findings import Finding, judge_formats, overall_finding, reasons
from unforgotten.audit.weights import Setting, WeightsLeg, gain_stderr
from unforgotten.theory.dead_zone import BINADES
from unforgotten.theory.update import GridMode, Survival
from unforgotten.theory.wash import wash_test

SCHEMA = "unforgotten.audit/1"
JSON_FILE = "audit.json"
TENSORS_FILE = "tensors.parquet"
HTML_FILE = "audit.html"
Overall = Literal["survives", "undone", "undecided"]


class Source(TypedDict):
    """Which checkpoint, bound to its bytes; `sha256` as in `Checkpoint.sha256`."""

    source: str
    revision: str | None
    sha256: str
    dtypes: list[str]


class Position(TypedDict):
    """Assumption U: distance of the positions in their cells from uniform, and its Kolmogorov tail."""

    ks: float | None
    p: float | None


class Wash(TypedDict):
    """T12."""

    z: float | None
    p: float


class FormatRow(TypedDict):
    """One format on one grid; None where a ratio has no value."""

    format: str
    grid: GridMode
    weights: int
    unchanged: int
    code_flips: int
    value_changes: int
    expected_flips: float
    gain: float | None
    gain_stderr: float | None
    cosine: float | None
    position: Position
    wash: Wash


class TensorRow(FormatRow):
    """The same, of one tensor."""

    name: str
    shape: list[int]
    dtype_target: str
    dtype_unlearned: str


class FoundDeadZone(TypedDict):
    """T4; `lr_estimate` is (low, high)."""

    detected: bool
    threshold: float | None
    lr_estimate: list[float] | None


class Binade(TypedDict):
    """Weights with low <= |w| < 2 low, and how many of them moved."""

    low: float
    weights: int
    moved: int


class Storage(TypedDict):
    """How the unlearned weights are stored, and what that let move."""

    dtype: str
    precision: str
    unchanged_fraction: float
    dead_zone: FoundDeadZone
    binades: list[Binade]


class Coverage(TypedDict):
    """What the audit looked at: quantized tensors and their weights, and the tensors quantizers leave alone."""

    tensors: int
    weights: int
    kept: int
    kept_changed: list[str]


class Legs(TypedDict):
    """One word a leg; None for a leg that was not measured."""

    weights: Finding
    output: str | None
    behaviour: str | None


class Verdict(TypedDict):
    """The answer and its reasons."""

    overall: Overall
    legs: Legs
    reasons: list[str]


class AuditResult(TypedDict):
    """`audit.json`."""

    schema: str
    version: str
    target: Source
    unlearned: Source
    formats: list[FormatRow]
    tensors: str
    coverage: Coverage
    storage: Storage
    verdict: Verdict


def build_result(
    target: Checkpoint,
    unlearned: Checkpoint,
    leg: WeightsLeg,
    output: Mapping[str, Any] | None = None,
    behaviour: Mapping[str, Any] | None = None,
) -> AuditResult:
    """The result of an audit; with the weights leg alone its verdict is always undecided."""
    judged = judge_formats(leg)
    return AuditResult(
        schema=SCHEMA,
        version=version("unforgotten"),
        target=_source(target),
        unlearned=_source(unlearned),
        formats=[
            format_row(setting, total, [t.survival[setting] for t in leg.tensors])
            for setting, total in leg.totals.items()
        ],
        tensors=TENSORS_FILE,
        coverage=_coverage(leg),
        storage=_storage(leg),
        verdict=Verdict(
            overall="undecided",
            legs=Legs(weights=overall_finding(judged), output=None, behaviour=None),
            reasons=reasons(leg, judged),
        ),
    )


def tensor_rows(leg: WeightsLeg) -> list[TensorRow]:
    """One row a tensor, format and grid, in that order."""
    return [
        TensorRow(
            **format_row(setting, measured, [measured]),
            name=t.name,
            shape=list(t.shape),
            dtype_target=t.dtypes[0],
            dtype_unlearned=t.dtypes[1],
        )
        for t in leg.tensors
        for setting, measured in t.survival.items()
    ]


def format_row(setting: Setting, total: Survival, parts: Sequence[Survival]) -> FormatRow:
    """The row of a total; `parts` are the tensors that it sums."""
    ks = total.position_distance
    wash = wash_test(total.code_flips, total.expected_flips, total.flips_variance, total.weights)
    return FormatRow(
        format=setting.format,
        grid=setting.grid,
        weights=total.weights,
        unchanged=total.unchanged,
        code_flips=total.code_flips,
        value_changes=total.value_changes,
        expected_flips=total.expected_flips,
        gain=_or_none(total.gain),
        gain_stderr=_or_none(gain_stderr(parts)),
        cosine=_or_none(total.cosine),
        position=Position(ks=_or_none(ks), p=_or_none(kolmogorov_tail(ks, sum(total.positions)))),
        wash=Wash(z=_or_none(wash.z), p=wash.p),
    )


def kolmogorov_tail(ks: float, n: int) -> float:
    """P[sqrt(n) D_n >= sqrt(n) ks] in the limit of large n; nan for no positions."""
    return float(kstwobign.sf(math.sqrt(n) * ks)) if n else math.nan


def _or_none(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _source(checkpoint: Checkpoint) -> Source:
    return Source(
        source=str(checkpoint.source),
        revision=checkpoint.revision,
        sha256=checkpoint.sha256(),
        dtypes=sorted({info.dtype.name for info in checkpoint.tensors.values()}),
    )


def _coverage(leg: WeightsLeg) -> Coverage:
    return Coverage(
        tensors=len(leg.tensors),
        weights=next(iter(leg.totals.values())).weights,
        kept=len(leg.kept),
        kept_changed=[name for name, changed in leg.kept.items() if changed],
    )


def _storage(leg: WeightsLeg) -> Storage:
    zone = leg.dead_zone
    counts = zip(BINADES, leg.binades.weights, leg.binades.moved, strict=True)
    return Storage(
        dtype=leg.storage_dtype,
        precision=leg.precision,
        unchanged_fraction=leg.unchanged_fraction,
        dead_zone=FoundDeadZone(
            detected=zone.detected,
            threshold=_or_none(zone.threshold),
            lr_estimate=list(zone.lr_estimate) if zone.detected else None,
        ),
        binades=[Binade(low=2.0**e, weights=n, moved=moved) for e, n, moved in counts if n],
    )
