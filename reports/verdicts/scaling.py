"""What each format passes of an update and what its cells take back, over seeds: from the runs of studies, and as tables.

for one in scaled(Evidence(Path("reports/published")), "bits-and-blocks"):
    print(one.storage, one.format, one.gain.value, one.back)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from unforgotten.records.rows import Run
from unforgotten.reports.markdown import table
from unforgotten.reports.run.conjectures import LEAST_EFFECT
from unforgotten.reports.verdicts.claim import number, share
from unforgotten.reports.verdicts.cures import Runs, runs_of, value_of
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds


class Scaled(NamedTuple):
    """A storage arm in one format, over seeds.

    Attributes:
        level: level of the study, the first part of its folders' names.
        method: unlearning method.
        storage: storage arm.
        format: name of the format.
        gain: gain of the update.
        back: share of the added forget loss that its cells take back, the base shift left out, over the seeds on which at least
            LEAST_EFFECT was added; None where there is none.
    """

    level: str
    method: str
    storage: str
    format: str
    gain: Mean
    back: Mean | None


def scaled(evidence: Evidence, study: str) -> list[Scaled]:
    """Return the cells of a study's runs in the order of the rows; none where it is not published."""
    return over_arms(runs_of(evidence, study))


def over_arms(arms: Mapping[tuple[str, str, str], Runs]) -> list[Scaled]:
    """Return the cells of runs by level, method and storage. A format that not every seed has is of the seeds that have it."""
    told = []
    for (level, method, storage), runs in arms.items():
        at = ("unlearned", method, storage)
        for fmt in dict.fromkeys(fmt for _, run in runs for fmt in run.formats):
            own = [(seed, run) for seed, run in runs if run.value("gain", *at, fmt) is not None]
            if not own:
                continue
            backs = [(seed, taken_back(run, *at, fmt)) for seed, run in own]
            gain = over_seeds((seed, value_of(run, "gain", *at, fmt)) for seed, run in own)
            told.append(Scaled(level, method, storage, fmt, gain, over_known(backs)))
    return told


def taken_back(run: Run, model: str, method: str, storage: str, fmt: str) -> float | None:
    """Return the share of the added forget loss that the cells of a format take back; None where less than LEAST_EFFECT was added."""
    added = value_of(run, "forget_loss", model, method, storage) - value_of(run, "forget_loss", "target")
    return value_of(run, "gating_effect", model, method, storage, fmt) / added if added >= LEAST_EFFECT else None


def over_known(values: Iterable[tuple[int, float | None]]) -> Mean | None:
    """Return the mean over the seeds that have a value; None where none has."""
    known = [(seed, value) for seed, value in values if value is not None]
    return over_seeds(known) if known else None


def format_table(found: Sequence[Scaled]) -> str:
    """Return a line for each format and a column for each method and storage: gain, and share that the cells take back."""
    arms = list(dict.fromkeys((one.method, one.storage) for one in found))
    cells = {(one.format, one.method, one.storage): one for one in found}
    heads = [f"{method}, {storage}" for method, storage in arms]
    formats = dict.fromkeys(one.format for one in found)
    lines = [
        (fmt, *(cell(cells.get((fmt, *arm))) for arm in arms), _seeds(one for one in found if one.format == fmt))
        for fmt in formats
    ]
    return table(("format", *heads, "seeds"), lines)


def arm_table(found: Sequence[Scaled]) -> str:
    """Return a line for each level, method and storage and a column for each format: gain, and share that the cells take back."""
    formats = list(dict.fromkeys(one.format for one in found))
    cells = {(one.level, one.method, one.storage, one.format): one for one in found}
    arms = dict.fromkeys((one.level, one.method, one.storage) for one in found)
    lines = [
        (*arm, *(cell(cells.get((*arm, fmt))) for fmt in formats), _seeds(one for one in found if one[:3] == arm))
        for arm in arms
    ]
    return table(("model", "method", "parameters", *formats, "seeds"), lines)


def cell(one: Scaled | None) -> str:
    """Return gain and share that the cells take back, each with its interval; a dash for what was not measured."""
    if one is None:
        return "–"
    return one.gain.text(number) + (f"; {one.back.text(share)}" if one.back else "")


def _seeds(found: Iterable[Scaled]) -> str:
    counts = {one.gain.seeds for one in found}
    return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
