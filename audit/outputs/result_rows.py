"""One format on one grid, in total or of one tensor, as `audit.json` and `tensors.parquet` hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from scipy.stats import kstwobign

from unforgotten.audit.codes.compare import ArtefactLeg, CodeCounts
from unforgotten.audit.weights.leg import WeightsLeg, gain_stderr
from unforgotten.audit.weights.sums import Setting
from unforgotten.theory.laws.update import GridMode, Survival
from unforgotten.theory.laws.wash import wash_test


class Position(TypedDict):
    """Assumption U: distance of the positions in their cells from uniform, and its Kolmogorov tail."""

    ks: float | None
    p: float | None


class Wash(TypedDict):
    """T12."""

    z: float | None
    p: float | None


class FormatRow(TypedDict):
    """One format on one grid; None where a ratio has no value, or the codes of a pair are all there is."""

    format: str
    grid: GridMode
    weights: int
    unchanged: int | None
    code_flips: int
    value_changes: int
    expected_flips: float | None
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


def tensor_rows(leg: WeightsLeg) -> list[TensorRow]:
    """Return one row a tensor, format and grid, in that order."""
    return [
        TensorRow(
            **format_row(setting, measured, [measured]),
            name=t.name,
            shape=list(t.shape),
            dtype_target=t.dtypes[0],
            dtype_unlearned=t.dtypes[1],
        )
        for t in (*leg.tensors, *leg.vocabulary)
        for setting, measured in t.survival.items()
    ]


def format_row(setting: Setting, total: Survival, parts: Sequence[Survival]) -> FormatRow:
    """Return the row of a total; `parts` are the tensors that it sums."""
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
        gain=finite_or_none(total.gain),
        gain_stderr=finite_or_none(gain_stderr(parts)),
        cosine=finite_or_none(total.cosine),
        position=Position(ks=finite_or_none(ks), p=finite_or_none(kolmogorov_tail(ks, sum(total.positions)))),
        wash=Wash(z=finite_or_none(wash.z), p=wash.p),
    )


def code_rows(leg: ArtefactLeg) -> list[TensorRow]:
    """Return one row a layer of a pair that is quantized already; each side has its own grid."""
    return [
        TensorRow(
            **code_row(leg.formats[name], counts),
            name=name,
            shape=list(leg.shapes[name]),
            dtype_target=leg.formats[name],
            dtype_unlearned=leg.formats[name],
        )
        for name, counts in leg.layers.items()
    ]


def code_row(name: str, counts: CodeCounts) -> FormatRow:
    """Return the row of counted codes: what the update was is not in the files, so no ratio has a value."""
    return FormatRow(
        format=name,
        grid="adaptive",
        weights=counts.weights,
        unchanged=None,
        code_flips=counts.code_flips,
        value_changes=counts.value_changes,
        expected_flips=None,
        gain=None,
        gain_stderr=None,
        cosine=None,
        position=Position(ks=None, p=None),
        wash=Wash(z=None, p=None),
    )


def audited_formats(rows: Sequence[FormatRow]) -> list[str]:
    """Return the names of the formats of an audit, each once."""
    return list(dict.fromkeys(row["format"] for row in rows))


def kolmogorov_tail(ks: float, n: int) -> float:
    """Return P[sqrt(n) D_n >= sqrt(n) ks] in the limit of large n; nan for no positions."""
    return float(kstwobign.sf(math.sqrt(n) * ks)) if n else math.nan


def finite_or_none(x: float) -> float | None:
    """Return a finite number, and None for nan and inf, which JSON does not have."""
    return x if math.isfinite(x) else None
