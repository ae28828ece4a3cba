"""What rounding cells bring back by format, and how it scales with bits and blocks: from the runs of studies.

for one in scaled(Evidence(Path("reports/published"))):
    print(one.storage, one.format, one.gain.value, one.back)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from unforgotten.reports.labels import storage_label
from unforgotten.reports.run.over_runs import LEAST_EFFECT
from unforgotten.reports.verdicts.claim import number, share
from unforgotten.reports.verdicts.cures import runs_of, value_of
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds

STUDY = "bits-and-blocks"
BITS = re.compile(r"int\d-g64")


class Scaled(NamedTuple):
    """A storage arm in one format, over the seeds of the study.

    Attributes:
        level: level of the study, the first part of its folders' names.
        method: unlearning method.
        storage: storage arm.
        format: name of the format.
        gain: gain of the update.
        back: share of the added forget loss that its cells take back, the base shift left out; None where less than LEAST_EFFECT
            was added.
    """

    level: str
    method: str
    storage: str
    format: str
    gain: Mean
    back: Mean | None


def scaled(evidence: Evidence, study: str = STUDY) -> list[Scaled]:
    """Return the cells of a study's runs in the order of the rows; none where it is not published."""
    told = []
    for (level, method, storage), runs in runs_of(evidence, study).items():
        at = ("unlearned", method, storage)
        added = [value_of(run, "forget_loss", *at) - value_of(run, "forget_loss", "target") for _, run in runs]
        forgot = all(one >= LEAST_EFFECT for one in added)
        for fmt in runs[0][1].formats:
            gain = over_seeds((seed, value_of(run, "gain", *at, fmt)) for seed, run in runs)
            effects = [(seed, value_of(run, "gating_effect", *at, fmt)) for seed, run in runs]
            back = (
                over_seeds((seed, x / one) for (seed, x), one in zip(effects, added, strict=True)) if forgot else None
            )
            told.append(Scaled(level, method, storage, fmt, gain, back))
    return told


def scaling_sentences(found: Sequence[Scaled]) -> list[str]:
    """Return a sentence for each storage arm over bits, and one over blocks; none without rows."""
    told = []
    for storage in dict.fromkeys(one.storage for one in found):
        own = [one for one in found if one.storage == storage]
        for what, of in (("bits", True), ("blocks", False)):
            cells = [_cell(one) for one in own if bool(BITS.fullmatch(one.format)) is of]
            if cells:
                told.append(
                    f"{own[0].method} with {storage_label(storage)}, over {what}, gain and share of the added forget loss that cells take back: "
                    f"{', '.join(cells)}."
                )
    return told


def arm_sentences(found: Sequence[Scaled]) -> list[str]:
    """Return a sentence for each method and storage arm: its gain in each format, and what the cells take back."""
    told = []
    for method, storage in dict.fromkeys((one.method, one.storage) for one in found):
        own = [one for one in found if (one.method, one.storage) == (method, storage)]
        cells = "; ".join(f"{one.format} {number(one.gain.value)}{_back(one)}" for one in own)
        told.append(f"{method}, {storage}, {_seeds(own[0])}: {cells}.")
    return told


def level_sentences(found: Sequence[Scaled]) -> list[str]:
    """Return a sentence for each level on its bf16 arms, all formats of a method beside each other, and one on all fp32 arms."""
    told = []
    for level in dict.fromkeys(one.level for one in found if one.storage == "bf16"):
        own = [one for one in found if (one.level, one.storage) == (level, "bf16")]
        formats = list(dict.fromkeys(one.format for one in own))
        cells = {
            method: ", ".join(f"{number(one.gain.value)}{_back(one)}" for one in own if one.method == method)
            for method in dict.fromkeys(one.method for one in own)
        }
        methods = "; ".join(f"{method} {text}" for method, text in cells.items())
        told.append(f"{level}, {_seeds(own[0])}, bf16 at {', '.join(formats)}: {methods}.")
    if masters := [one for one in found if one.storage == "fp32"]:
        gains = [one.gain.value for one in masters]
        levels = len({one.level for one in masters})
        told.append(
            f"Of all these with fp32 masters, in {levels} architectures, the gain is {number(min(gains))} to {number(max(gains))}."
        )
    return told


def _seeds(one: Scaled) -> str:
    return "one seed" if one.gain.seeds == 1 else f"means of {one.gain.seeds} seeds"


def _back(one: Scaled) -> str:
    return f" and {share(one.back.value)}" if one.back else ""


def _cell(one: Scaled) -> str:
    back = f", {share(one.back.value)}" if one.back else ""
    return f"{one.format} {number(one.gain.value)}{back}"
