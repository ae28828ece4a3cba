"""Published rows, read once, and means over seeds with their intervals.

>>> over_seeds([(0, 1.0), (0, 3.0), (1, 4.0)]).text("{:.1f}".format)
'3.0 [-9.7, 15.7]'
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.records.rows import Run, read_run
from unforgotten.reports.predicted import came_true, outcomes

LEVEL = 0.95
COARSE = ("int4-g64", "int4-row", "fp4-b64")
"""Formats of 4 bits with a wide cell at zero."""
FOUR_BITS = (*COARSE, "nf4-b64")
TINY = tuple(f"tiny-seed{seed}" for seed in range(5))
StudyRow = Mapping[str, Any]


class Mean(NamedTuple):
    """A mean of the means of seeds, with the interval of Student's t over seeds at 95 %; without one for a single seed."""

    value: float
    low: float
    high: float
    seeds: int

    def text(self, shown: Callable[[float], str]) -> str:
        """Return it in words: 0.49 [0.43, 0.55]."""
        if self.seeds < 2:
            return f"{shown(self.value)} (one seed)"
        return f"{shown(self.value)} [{shown(self.low)}, {shown(self.high)}]"


def over_seeds(values: Iterable[tuple[int, float]]) -> Mean:
    """Return the mean over seeds of values that each belong to a seed.

    Raises:
        ValueError: there is none.
    """
    of_seed: dict[int, list[float]] = {}
    for seed, value in values:
        of_seed.setdefault(seed, []).append(value)
    if not of_seed:
        raise ValueError("values must hold one of a seed at least, got none")
    means = np.array([np.mean(found) for found in of_seed.values()])
    middle, count = float(means.mean()), len(means)
    if count < 2:
        return Mean(middle, -math.inf, math.inf, 1)
    half = float(scipy.special.stdtrit(count - 1, (1 + LEVEL) / 2) * means.std(ddof=1) / math.sqrt(count))
    return Mean(middle, middle - half, middle + half, count)


def came_back(row: StudyRow) -> float:
    """Return which share of the forget loss that unlearning added is gone in the quantized model; below 0, it forgets further."""
    return float(row["came_back"] / (row["loss"] - row["target_loss"]))


def by_gating(row: StudyRow) -> float:
    """Return the share that is gone by the rounding cells alone, without the base shift."""
    return float(row["came_back_gating"] / (row["loss"] - row["target_loss"]))


@dataclass(frozen=True)
class Evidence:
    """The rows of `reports/published`, by the folder they stand in."""

    published: Path
    _read: dict[str, Run] = field(default_factory=dict, compare=False, repr=False)

    def study(self, name: str) -> list[StudyRow]:
        """Return the rows of a study; none where it is not published."""
        path = self.published / name / ROWS_FILE
        return list(read_json_lines(path)) if path.is_file() else []

    def predicted(self, name: str) -> str:
        """Return how many predictions of a study of runs came true, in a sentence; empty where it made none."""
        path = self.published / name / "study.json"
        return came_true(outcomes(path.parent, json.loads(path.read_text(encoding="utf-8")))) if path.is_file() else ""

    def run(self, name: str) -> Run:
        """Return a run, read once."""
        if name not in self._read:
            self._read[name] = read_run(self.published / name)
        return self._read[name]

    @cached_property
    def runs(self) -> list[str]:
        """Names of the published runs."""
        return sorted(path.parent.name for path in self.published.glob("*/config.json"))

    @cached_property
    def gains(self) -> list[StudyRow]:
        """Rows of `functional-gain`: five seeds of `tiny`, six methods, fp32 and bf16."""
        return self.study("functional-gain")

    def cells(self, storage: str, family: str, formats: Iterable[str]) -> list[StudyRow]:
        """Return those of `gains` of a storage, of methods that begin with a word, in formats."""
        wanted = tuple(formats)
        return [
            row
            for row in self.gains
            if row["storage"] == storage and row["method"].startswith(family) and row["format"] in wanted
        ]


def seeded(rows: Iterable[StudyRow], value: Callable[[StudyRow], float]) -> Mean:
    """Return the mean over seeds of a value of rows."""
    return over_seeds((row["seed"], value(row)) for row in rows)
