"""What the rows of a run say, in plain sentences, by fixed rules. Every number in them is a row's, or a count of rows.

In goes a run; out come the sentences of its page, and the titles of its headline figure:

    answer(read_run(Path("reports/published/tiny-seed0")))

has "With fp32 master weights, quantization brought verbatim memory back in 0 of 30 combinations of method and format; …".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from unforgotten.records.rows import Row, Run, select
from unforgotten.reports.labels import estimate, family, listed, number, storage_label, storage_short
from unforgotten.reports.run.conjectures import conjectures
from unforgotten.reports.run.gates import gate_checks, passed

COARSE = ("int4", "fp4")  # the formats whose cells around zero are wide
RHO_MEANS = "0: as little as before quantization, 1: as much as the quantized target"


@dataclass(frozen=True)
class Recovery:
    """rho of one metric in one storage arm, over methods and formats.

    Attributes:
        storage: storage arm.
        metric: metric whose rho it is, "M1" or "M2".
        back: cells whose interval lies above 0.
        away: cells whose interval lies below 0: quantization deepened the forgetting.
        level: cells whose interval holds 0.
        undefined: cells where there was nothing to recover.
    """

    storage: str
    metric: str
    back: list[Row]
    away: list[Row]
    level: list[Row]
    undefined: list[Row]

    @property
    def defined(self) -> list[Row]:
        """Cells with a value."""
        return [*self.back, *self.away, *self.level]

    @property
    def largest(self) -> Row | None:
        """The cell with the largest rho."""
        return max(self.defined, key=_value, default=None)


def recovery(run: Run, storage: str, metric: str = "M1") -> Recovery:
    """Sort the cells of one storage arm by where their interval lies."""
    rows = select(run.rows, metric=f"rho_{metric}", storage=storage)
    defined = [row for row in rows if row.value is not None]
    back = [row for row in defined if row.bounds and row.bounds[0] > 0]
    away = [row for row in defined if row.bounds and row.bounds[1] < 0]
    level = [row for row in defined if row not in back and row not in away]
    return Recovery(storage, metric, back, away, level, [row for row in rows if row.value is None])


class HeadlineSentences(NamedTuple):
    """Titles of the two halves of the headline figure: a question, and a line for each storage arm."""

    gain: str
    memory: str


def headline_sentences(run: Run) -> HeadlineSentences:
    """Return what each half of the headline figure shows, in so few words that they fit above it."""
    gains = [
        f"{storage_short(s)}: {value_range(rows)}"
        for s in run.storages
        if (rows := select(run.rows, metric="gain", storage=s)) and _values(rows)
    ]
    counts = [
        f"{storage_short(s)}: in {len(r.back)} of {len(r.defined)} cases ({len(r.away)} drop further)"
        for s in run.storages
        if (r := recovery(run, s)).defined
    ]
    return HeadlineSentences(
        "\n".join(["How much of the update survives quantization?", *gains]),
        "\n".join(["Does recitation come back after quantization?", *counts]),
    )


def answer(run: Run) -> list[str]:
    """Return what a run shows in a few sentences, each with its numbers."""
    sentences = [_caveat(run)]
    sentences += [_recovery_sentence(recovery(run, s), explain=s == run.storages[0]) for s in run.storages]
    sentences += [_gain_sentence(run), _gating_sentence(run), _verdict_sentence(run)]
    return [sentence for sentence in sentences if sentence]


def _caveat(run: Run) -> str:
    checks = gate_checks(run)
    if passed(checks) is not False:
        return ""
    failed = [f"{c.rule}, found {c.found}" for c in checks if c.passed is False]
    return f"Read the rest with care, this run can show little. A condition does not hold: {'; '.join(failed)}."


def _recovery_sentence(r: Recovery, *, explain: bool) -> str:
    if not r.defined and not r.undefined:
        return ""
    arm = storage_label(r.storage)
    if r.largest is None:
        return f"With {arm}, whether verbatim memory came back is undefined in all {len(r.undefined)} cases."
    rho = "recovered fraction ρ(M1)" + (f" ({RHO_MEANS})" if explain else "")
    text = (
        f"With {arm}, quantization brought verbatim memory back in {len(r.back)} of {len(r.defined)} combinations "
        f"of method and format; the largest {rho} is {estimate(r.largest)} ({_place(r.largest)})"
    )
    if r.away:
        least = min(r.away, key=_value)
        text += f", and in {len(r.away)} it drove memory further down, most at {_place(least)} with {estimate(least)}"
    return text + (f"; {len(r.undefined)} more are undefined." if r.undefined else ".")


def _gain_sentence(run: Run) -> str:
    parts = []
    for storage in run.storages:
        rows = select(run.rows, metric="gain", storage=storage)
        if not _values(rows):
            continue
        part = f"{value_range(rows)} with {storage_label(storage)}"
        coarse = [row for row in rows if family(row.format) in COARSE]
        if _values(coarse):
            part += f" ({value_range(coarse)} at {listed(_formats(coarse))})"
        parts.append(part)
    return f"The gain, the share of the update that survives quantization, is {listed(parts)}." if parts else ""


def _gating_sentence(run: Run) -> str:
    parts = []
    for storage in run.storages:
        rows = select(run.rows, metric="gating_effect", storage=storage)
        largest = max((row for row in rows if row.value is not None), key=lambda r: abs(_value(r)), default=None)
        if largest is not None:
            parts.append(f"{estimate(largest)} with {storage_label(storage)} ({_place(largest)})")
    if not parts:
        return ""
    return (
        "The largest gating effect, the forget loss in nats per token that is lost because only part of the update "
        f"survives, is {listed(parts)}; a negative number means that forgetting got deeper."
    )


def _verdict_sentence(run: Run) -> str:
    verdicts = [f"{c.name} ({c.short}) is {c.verdict}, {c.scope}" for c in conjectures(run)]
    return f"As far as these rows go, {'; '.join(verdicts)}."


def value_range(rows: Iterable[Row]) -> str:
    """Return the smallest and the largest value as text; a dash without values."""
    values = sorted((row for row in rows if row.value is not None), key=_value)
    if not values:
        return "–"
    low, high = (number(row.metric, row.value) for row in (values[0], values[-1]))
    return low if low == high else f"{low} to {high}"


def _values(rows: Iterable[Row]) -> list[float]:
    return [row.value for row in rows if row.value is not None]


def _formats(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.format for row in rows))


def _place(row: Row) -> str:
    return f"{row.method}, {row.format}"


def _value(row: Row) -> float:
    if row.value is None:
        raise ValueError(f"a row must have a value to be compared, got none for {row.key}")
    return row.value
