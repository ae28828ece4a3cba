"""How many items stand behind a verdict, what so few could show, and how many would decide.

In goes a row of the output or behaviour leg; out comes its power: the chance that the rule says "survives" of a format that
brings nothing back, and "undone" of one that brings all back, at the spread that the items show. Both are normal
approximations from the intervals of rho: the bootstrap's width says how estimates spread, Fieller's how far from an estimate
its ends are, and the pseudo-items draw its middle toward a half. "Survives" is 0 below LEAST_EFFECTIVE items.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import TypedDict

import numpy as np

from unforgotten.audit.verdict.evidence import LEVEL, MATERIAL, SURELY
from unforgotten.audit.verdict.legs import BehaviourLeg, OutputLeg, RecoveryRow, deciding_of
from unforgotten.theory.models.fieller import PSEUDO, fieller_interval

FEW = 12
"""Effective items below which the verdict says that they are few."""
LEAST_EFFECTIVE = next(
    n
    for n in itertools.count(2)
    if (1.0 - MATERIAL) ** n <= LEVEL and fieller_interval(np.zeros(n), np.ones(n)).high < MATERIAL
)
"""Items of equal removal below which the rule does not say "survives" though nothing of any comes back."""
WANTED_POWER = 0.8
MOST_ITEMS = 100_000
SIDE = NormalDist().inv_cdf(1.0 - LEVEL / 2.0)
SPARE = NormalDist().inv_cdf(WANTED_POWER)


class PowerRow(TypedDict):
    """The items of one metric in one format.

    `n`: items; `effective`: of equal weight, (sum r)^2 / sum r^2 of what was removed (Kish 1965). `survives`, `undone`:
    power to say so. `deciding`: items of this kind that would settle this format with a power of 80 %, if rho is what it
    looks like; None for more than MOST_ITEMS, or where nothing was removed.
    """

    leg: str
    format: str
    metric: str
    n: int
    effective: float | None
    survives: float
    undone: float
    deciding: int | None


def power_rows(output: OutputLeg | None, behaviour: BehaviourLeg | None) -> list[PowerRow]:
    """Return a row for each deciding metric in each format that was measured."""
    return [
        *_rows("output", output, ("accuracy", "probability")),
        *_rows("behaviour", behaviour, deciding_of(behaviour)),
    ]


def _rows(name: str, leg: OutputLeg | BehaviourLeg | None, deciding: tuple[str, ...]) -> Iterator[PowerRow]:
    for found in leg["formats"] if leg is not None else ():
        for row in found["recoveries"]:
            if row["metric"] in deciding:
                yield _power(name, found["format"], row)


def _power(leg: str, format_name: str, row: RecoveryRow) -> PowerRow:
    effective, stderr = row.get("effective"), stderr_of(row)
    found = PowerRow(
        leg=leg,
        format=format_name,
        metric=row["metric"],
        n=row["n"],
        effective=effective,
        survives=0.0,
        undone=0.0,
        deciding=None,
    )
    if stderr is None or row["rho"] is None or row["low"] is None or row["high"] is None:
        return found
    drawn = 2 * PSEUDO / (effective + 2 * PSEUDO) if effective and "bootstrap" in row else 0.0
    reach = (row["high"] - row["low"]) / 2 + drawn / 2
    few = effective is not None and effective < LEAST_EFFECTIVE
    found["survives"] = 0.0 if few else _beyond(MATERIAL - reach, (1.0 - drawn) * stderr)
    found["undone"] = _beyond(1.0 - SURELY - reach, (1.0 - drawn) * stderr)
    found["deciding"] = _deciding(row["n"], effective, row["rho"], (row["low"], row["high"]), stderr)
    return found


def stderr_of(row: RecoveryRow) -> float | None:
    """Return the standard error of rho that the bootstrap's interval stands for, or Fieller's; None where it has none."""
    ends = row.get("bootstrap") or (row["low"], row["high"])
    if ends[0] is None or ends[1] is None:
        return None
    return (ends[1] - ends[0]) / (2.0 * SIDE)


def _beyond(room: float, stderr: float) -> float:
    """Return P[an estimate errs by less than `room` toward the border]."""
    return NormalDist().cdf(room / stderr) if stderr else float(room > 0)


def _deciding(n: int, effective: float | None, rho: float, ends: tuple[float, float], stderr: float) -> int | None:
    alive = rho < MATERIAL
    distance = MATERIAL - rho if alive else rho - SURELY
    reach = ends[1] - rho if alive else rho - ends[0]
    least = LEAST_EFFECTIVE * n / effective if effective else float(LEAST_EFFECTIVE)
    wanted = max(least, n * ((reach + SPARE * stderr) / distance) ** 2) if distance > 0 else math.inf
    return math.ceil(wanted) if wanted <= MOST_ITEMS else None


def power_sentence(rows: list[PowerRow]) -> str | None:
    """Return one sentence on the metric with the fewest effective items; None where nothing was measured."""
    known = [row for row in rows if row["effective"] is not None]
    if not known:
        return None
    row = min(known, key=lambda one: (one["effective"] or 0.0, one["survives"]))
    effective = row["effective"] or 0.0
    few = f", fewer than the {FEW} that a verdict should rest on" if effective < FEW else ""
    return (
        f"{row['metric']} in {row['format']} rests on {_floored(effective)} effective items of {row['n']}{few}: so many show "
        f"that nothing came back in {100 * row['survives']:.0f} % of cases and that all did in "
        f"{100 * row['undone']:.0f} %; {_wanted(row)}."
    )


def _floored(effective: float) -> str:
    """Return the number to one decimal, rounded down: what is below FEW never reads as FEW."""
    return f"{math.floor(10 * effective) / 10:.1f}"


def _wanted(row: PowerRow) -> str:
    if row["deciding"] is None:
        return f"more than {MOST_ITEMS:,} would decide"
    return f"about {row['deciding']:,} would {'decide' if row['deciding'] > row['n'] else 'have been enough'}"
