"""What the weights leg shows, in words: one finding a format, the sentences, and the verdict.

In goes the weights leg, out come one word a format, one word for all, and sentences with their numbers:

    judged = judge_formats(leg)
    overall_finding(judged)  # "swallowed"
    gain_sentence(judged[0])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from unforgotten.audit.findings.row import FindingId, FindingRow
from unforgotten.audit.weights.leg import WeightsLeg, gain_stderr
from unforgotten.audit.weights.sums import Setting
from unforgotten.theory.laws.update import Survival
from unforgotten.theory.laws.wash import wash_test

Finding = Literal["no update", "passes", "partly swallowed", "swallowed", "unclear"]
FINDINGS: tuple[Finding, ...] = get_args(Finding)
SWALLOWED_GAIN = 0.5  # T11b: less than half of the update is left
PASSES_GAIN = 0.9
STDERRS = 2.0  # half-width of the interval that a finding is judged by
WASH_P = 1e-9  # far below chance, even times the formats of any audit
WASH_RATIO = (0.8, 1.25)  # U is a law of large cells: a bias of some per cent in the expected flips is normal
MAX_NAMED = 3  # tensors named in a sentence
UNCONFIRMED = " (by which weights it moves at all: among weights of one code and size no wash is seen)"


class Judged(NamedTuple):
    """The total of one format on adaptive grids, as deployment quantizes, and what it says."""

    format: str
    total: Survival
    stderr: float
    finding: Finding


def judge_formats(leg: WeightsLeg) -> list[Judged]:
    """Judge each format, in the order of the request."""
    names = dict.fromkeys(setting.format for setting in leg.totals)
    return [_judge(leg, name) for name in names]


def _judge(leg: WeightsLeg, name: str) -> Judged:
    setting = Setting(name, "adaptive")
    total = leg.totals[setting]
    stderr = gain_stderr(leg.parts(setting))
    return Judged(name, total, stderr, judge_gain(total.gain, stderr))


def judge_gain(gain: float, stderr: float) -> Finding:
    """Return the finding that the interval gain ± STDERRS · stderr allows.

    Wholly below SWALLOWED_GAIN: swallowed. Wholly below PASSES_GAIN: partly swallowed. Wholly above SWALLOWED_GAIN:
    passes. Else too few codes flipped to tell: unclear. A gain of nan means that nothing was updated.
    """
    if math.isnan(gain):
        return "no update"
    low, high = gain - STDERRS * stderr, gain + STDERRS * stderr
    if high < SWALLOWED_GAIN:
        return "swallowed"
    if high < PASSES_GAIN:
        return "partly swallowed"
    return "passes" if low > SWALLOWED_GAIN else "unclear"


def overall_finding(judged: Sequence[Judged]) -> Finding:
    """Return one word for all formats: theirs if they agree; partly swallowed if any loses some; unclear else."""
    words: set[Finding] = {j.finding for j in judged}
    if len(words) == 1:
        return words.pop()
    return "partly swallowed" if words & {"swallowed", "partly swallowed"} else "unclear"


def reasons(leg: WeightsLeg, judged: Sequence[Judged], rows: Sequence[FindingRow]) -> list[str]:
    """Return the findings as plain sentences with their numbers, the most important first."""
    finding = overall_finding(judged)
    sentences = [*_no_update(leg)] if finding == "no update" else [gain_sentence(j) for j in judged]
    sentences += [*_of(rows, "comes-back", "zero-bin", "on-grid"), *_warned(rows, "dead-zone"), *_wash(leg, rows)]
    return [*sentences, *storage_sentences(leg), *_kept(leg), *_of(rows, "theory-disagrees", "advice")]


def _of(rows: Sequence[FindingRow], *ids: FindingId) -> list[str]:
    return [row["sentence"] for row in rows if row["id"] in ids]


def _warned(rows: Sequence[FindingRow], id: FindingId) -> list[str]:
    """Return the sentences of a finding that is more than a note: what the files cannot tell is no reason."""
    return [row["sentence"] for row in rows if row["id"] == id and row["severity"] != "note"]


def _no_update(leg: WeightsLeg) -> list[str]:
    weights = leg.quantized.weights
    tensors = f"{weights:,} weights of the {len(leg.tensors)} tensors that quantizers touch"
    return [f"No update: all {tensors} are equal in both checkpoints."]


def gain_sentence(j: Judged) -> str:
    """Return a sentence on what one format does to the update."""
    stay = 1 - j.total.code_flips / j.total.weights
    head = f"{j.format}: gain {j.total.gain:.2f} ± {STDERRS * j.stderr:.2f}"
    codes = f"{share(stay)} of the codes stay equal"
    if j.finding == "swallowed":
        return f"{head}: the update is swallowed by the rounding cells; {codes}."
    if j.finding == "partly swallowed":
        return f"{head}: part of the update is swallowed by the rounding cells; {codes}."
    if j.finding == "unclear":
        return f"{head}: too few codes flip to tell whether the update passes; {codes}."
    if abs(j.total.gain - 1) <= STDERRS * j.stderr:
        return f"{head}: the update passes without bias, though {codes}."
    bias = "amplified" if j.total.gain > 1 else "a little weakened"
    return f"{head}: the update passes, {bias}; {codes}."


def _wash(leg: WeightsLeg, rows: Sequence[FindingRow]) -> list[str]:
    """Return the totals of the first wash test, and whether the second one agrees."""
    confirmed = {row["format"] for row in rows if row["id"] == "wash"}
    found = []
    for setting, total in leg.totals.items():
        if setting.grid != "fixed" or not total.expected_flips:
            continue
        test = wash_test(total.code_flips, total.expected_flips, total.flips_variance, total.weights)
        ratio = total.code_flips / total.expected_flips
        if test.p < WASH_P and not WASH_RATIO[0] <= ratio <= WASH_RATIO[1]:
            side = "avoids" if ratio < 1 else "aims at"
            also = "" if setting.format in confirmed else UNCONFIRMED
            found.append(
                f"{setting.format}: {total.code_flips:,} codes flip on the target's grid where weights at random "
                f"places would give {total.expected_flips:,.0f} (z = {test.z:.1f}): the update {side} the thresholds{also}."
            )
    return found


def storage_sentences(leg: WeightsLeg) -> list[str]:
    """Return sentences on what differs in the storage of the two sides."""
    pairs = sorted({t.dtypes for t in leg.tensors if t.dtypes[1] not in ("float32", t.dtypes[0])})
    found = [
        f"The target is stored in {before} and the unlearned model in {after}: the update measured here holds the "
        "rounding between the two."
        for before, after in pairs
    ]
    if leg.precision != leg.storage_dtype:
        found.append(f"The unlearned weights are stored in {leg.storage_dtype}, but each is exactly a {leg.precision}.")
    return found


def _kept(leg: WeightsLeg) -> list[str]:
    kept = leg.left_alone
    changed = [name for name, differs in kept.items() if differs]
    if not changed:
        return []
    names = ", ".join(ascii(name) for name in changed[:MAX_NAMED])
    more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
    count = f"{len(changed)} of the {len(kept)}"
    sentence = (
        f"Also changed: {count} tensors that quantizers leave alone ({names}{more}); "
        "that part of the update is kept whole and is not in the gain."
    )
    mixed = [t.name for t in leg.vocabulary if t.name in changed]
    if mixed:
        formats = dict.fromkeys(s.format for t in leg.vocabulary for s in t.survival)
        sentence += f" {', '.join(formats)} quantizes {', '.join(ascii(n) for n in mixed)}: its gain is of the whole."
    return [sentence]


def share(x: float) -> str:
    """Return a share in per cent, never rounded up to 100 % or down to 0 %."""
    if 0 < x < 0.0005:
        return "under 0.1 %"
    return f"over {99.9} %" if 0.9995 < x < 1 else f"{100 * x:.1f} %"
