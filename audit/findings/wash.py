"""Findings of the wash test (T12): an update that avoids the thresholds of a format, or aims at them.

Two tests must agree. The count of flips of every tensor and format, against Hoeffding's bound under assumption U, at a
false discovery rate of WASH_LEVEL over all of them (Benjamini & Yekutieli: valid under any dependence); a ratio within
WASH_RATIO of 1 is no finding, as the density of real weights bends over a cell: a placed update that lacks up to a fifth
of the expected flips, or has up to a quarter too many, is never reported, at any number of weights. Its z and p stand
beside the format in `audit.json` all the same. Then, on the probe's rows, a permutation
of the updates among weights of one code, one quarter of a binade and one sign, which needs no U: what storage in a
narrow dtype or the size of a weight decides is the same in every permutation. False alarms: at most WASH_LEVEL an
audit where U holds; where it fails, at most 2 / (1 + PERMUTATIONS) for each tensor that is looked at twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.findings.probe import Sample, fits
from unforgotten.audit.findings.probe_cells import cells_of
from unforgotten.audit.findings.row import STANDARD_DEVIATIONS, FindingRow, finding
from unforgotten.audit.findings.sentences import WASH_RATIO
from unforgotten.audit.mixes.mix import is_mix
from unforgotten.audit.weights.leg import WeightsLeg
from unforgotten.audit.weights.sums import Setting
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.theory.laws.multiplicity import false_discoveries
from unforgotten.theory.laws.update import Survival
from unforgotten.theory.laws.wash import PERMUTATIONS, WashTest, permutation_wash_test, wash_test

WASH_LEVEL = 1e-3
MAX_CONFIRMED = 3  # tensors of a format that are looked at twice, those of the largest |z|
PERMUTED_WEIGHTS = 1 << 13  # at most, of one tensor
FIRST_PERMUTATIONS = 99
SEED = 12
QUARTERS = 4  # of a binade: inside one, whether storage lets a weight move is nearly the same for all


class Candidate(NamedTuple):
    """One tensor in one format that the first test flags; `adjusted` is its p-value after Benjamini & Yekutieli."""

    format: str
    tensor: str
    survival: Survival
    test: WashTest
    adjusted: float


def wash_findings(leg: WeightsLeg, samples: Sequence[Sample]) -> list[FindingRow]:
    """Report tensors and formats in which both tests see a wash, trying only the strongest of each format."""
    sample_of = {sample.tensor: sample for sample in samples}
    found: list[FindingRow] = []
    flagged = candidates(leg)
    for name in dict.fromkeys(c.format for c in flagged):
        ordered = sorted((c for c in flagged if c.format == name), key=lambda c: -abs(c.test.z))
        for c in ordered[:MAX_CONFIRMED]:
            again = confirmed(sample_of[c.tensor], format_named(name))
            if again is not None and again.z * c.test.z > 0:
                found.append(_row(c, again, len(ordered), len(leg.tensors)))
    return found


def confirmed(sample: Sample, fmt: Format) -> WashTest | None:
    """Return the second test where no permutation flips as few codes, or as many; None else.

    It stops after FIRST_PERMUTATIONS, the first ones of the same draws, if one of those already does: that can only
    confirm less.
    """
    for count in (FIRST_PERMUTATIONS, PERMUTATIONS):
        test = permuted(sample, fmt, count)
        if test is None or test.p > 2 / (1 + count):
            return None
    return test


def candidates(leg: WeightsLeg) -> list[Candidate]:
    """Return what the first test flags, on the target's grid, in the order of the formats and tensors."""
    rows: list[tuple[str, str, Survival, WashTest]] = []
    for setting in (s for s in leg.totals if s.grid == "fixed" and not is_mix(s.format)):
        for t in leg.tensors:
            m = t.survival[Setting(setting.format, "fixed")]
            test = wash_test(m.code_flips, m.expected_flips, m.flips_variance, m.weights)
            rows.append((setting.format, t.name, m, test))
    if not rows:
        return []
    adjusted = false_discoveries(np.array([test.p for *_, test in rows]), WASH_LEVEL, dependent=True)
    return [
        Candidate(*row, float(p))
        for row, hit, p in zip(rows, adjusted.rejected, adjusted.adjusted, strict=True)
        if hit and _is_large(row[2])
    ]


def _is_large(m: Survival) -> bool:
    if not m.expected_flips:
        return False
    return not WASH_RATIO[0] <= m.code_flips / m.expected_flips <= WASH_RATIO[1]


def permuted(sample: Sample, fmt: Format, permutations: int = PERMUTATIONS) -> WashTest | None:
    """Return the second test on the probe's rows; None where the format cannot be told from them."""
    views = [cells_of(run, fmt) for run in sample.runs if fits(fmt, run)]
    if not views:
        return None
    most = max(1, PERMUTED_WEIGHTS // len(views))
    parts = [np.stack([v.v, v.delta, v.step, v.w, v.codes.astype(np.float64)])[:, :most] for v in views]
    v, delta, step, w, codes = np.concatenate(parts, axis=1)
    return permutation_wash_test(
        v, delta, strata(w, codes), fmt.thresholds.astype(np.float64), seed=SEED, step=step, permutations=permutations
    )


def strata(w: NDArray[Any], codes: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of each weight's stratum: of one code, quarter of a binade of |w|, and sign."""
    mantissa, exponent = np.frexp(np.abs(w))
    quarter = np.floor((2 * mantissa - 1).clip(0) * QUARTERS)
    keys = np.stack([codes, exponent, quarter, np.signbit(w)], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _row(c: Candidate, again: WashTest, flagged: int, tensors: int) -> FindingRow:
    m = c.survival
    ratio = m.code_flips / m.expected_flips
    margin = STANDARD_DEVIATIONS * math.sqrt(m.flips_variance) / m.expected_flips
    side = "avoids" if ratio < 1 else "aims at"
    sentence = (
        f"{c.format}: the update {side} the thresholds: {m.code_flips:,} codes of {c.tensor!a} flip where weights at "
        f"random places would give {m.expected_flips:,.0f} (z = {c.test.z:.1f}); permuting it among like weights gives "
        f"z = {again.z:.1f}, p = {again.p:.2g}. {flagged} of {tensors} tensors are flagged in this format."
    )
    return finding(
        "wash",
        "warning",
        sentence,
        measure="flips over expected flips",
        effect=ratio,
        interval=(ratio - margin, ratio + margin),
        p=c.adjusted,
        format=c.format,
        tensor=c.tensor,
    )
