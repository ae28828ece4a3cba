"""What each cure keeps at 4 bits of what was forgotten, and what it costs: from the runs of the study `cures`.

for cure in cures(Evidence(Path("reports/published"))):
    print(cure.name, cure.gain.value, cure.back.value, cure.utility.value)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from unforgotten.records.depths import END, words
from unforgotten.records.rows import Run
from unforgotten.reports.verdicts.claim import number, share
from unforgotten.reports.verdicts.evidence import Evidence, Mean, over_seeds

STUDY = "cures"
COARSE = ("int4-g64", "fp4-b64")
ALIKE = 0.1
"""Difference of gains, and of shares that came back, that counts as none."""
FOLDER = re.compile(r"(?P<level>.+)-seed(?P<seed>\d+)")


class Cure(NamedTuple):
    """One way of unlearning, over the seeds of the study.

    Attributes:
        name: method and storage.
        depth: depth of forgetting at which the weights were kept, see `records/depths.py`.
        lr: learning rate.
        loss: forget loss of the unlearned model.
        gain: gain at int4 and fp4.
        back: share of the forget loss that unlearning added which is gone at int4 and fp4.
        utility: M4 of the unlearned model less that of the target, in points.
        quantized_utility: the same of both at int4 and fp4.
    """

    name: str
    depth: str
    lr: float
    loss: Mean
    gain: Mean
    back: Mean
    utility: Mean
    quantized_utility: Mean


class Kept(NamedTuple):
    """What one arm of one seed keeps: gain and share that came back at int4 and fp4, M4 less that of the target."""

    gain: float
    back: float
    utility: float


Runs = list[tuple[int, Run]]


def runs_of(evidence: Evidence, study: str) -> dict[tuple[str, str, str], Runs]:
    """Return the runs of a study with their seeds, by level, method and storage, in the order of its folders."""
    found: dict[tuple[str, str, str], Runs] = {}
    for path in sorted((evidence.published / study).glob("*/config.json")):
        place = FOLDER.fullmatch(path.parent.name)
        if place is None:
            continue
        for run in evidence.run(f"{study}/{path.parent.name}").by_depth():
            for method, storage in run.arms:
                found.setdefault((place["level"], method, storage), []).append((int(place["seed"]), run))
    return found


def folders_of(evidence: Evidence, study: str) -> tuple[str, ...]:
    """Return the folders of a study's runs below `reports/published`."""
    return tuple(f"{study}/{path.parent.name}" for path in sorted((evidence.published / study).glob("*/config.json")))


def cures(evidence: Evidence) -> list[Cure]:
    """Return the cures by depth, then in the order of the study's folders; none where it is not published."""
    found: dict[tuple[str, str, str], Runs] = {}
    for (_, method, storage), runs in runs_of(evidence, STUDY).items():
        for seed, run in runs:
            found.setdefault((run.depth or END, method, storage), []).append((seed, run))
    return [
        _cure(depth, method, storage, found[depth, method, storage])
        for depth, method, storage in sorted(found, key=_first)
    ]


def _first(place: tuple[str, str, str]) -> tuple[bool, str]:
    return place[0] == END, place[0]


def apart(differences: Sequence[Mean]) -> bool | None:
    """Return whether any difference is more than `ALIKE` and its interval off 0; None where the seeds cannot tell."""
    if any(abs(mean.value) > ALIKE and not mean.low <= 0 <= mean.high for mean in differences):
        return True
    return False if all(-ALIKE <= mean.low and mean.high <= ALIKE for mean in differences) else None


def kept(run: Run, method: str, storage: str) -> Kept:
    """Return what an arm of a run keeps, means over int4 and fp4."""
    gains = [value_of(run, "gain", "unlearned", method, storage, fmt) for fmt in COARSE]
    backs = [back_of(run, method, storage, fmt) for fmt in COARSE]
    utility = value_of(run, "M4", "unlearned", method, storage) - value_of(run, "M4", "target")
    return Kept(sum(gains) / len(gains), sum(backs) / len(backs), utility)


def back_of(run: Run, method: str, storage: str, fmt: str) -> float:
    """Return the share of the forget loss that unlearning added which is gone in a format."""
    before, after = value_of(run, "forget_loss", "target"), value_of(run, "forget_loss", "unlearned", method, storage)
    return (after - value_of(run, "forget_loss", "unlearned", method, storage, fmt)) / (after - before)


def _cure(depth: str, method: str, storage: str, runs: Runs) -> Cure:
    own = [(seed, kept(run, method, storage)) for seed, run in runs]
    losses = [(seed, value_of(run, "forget_loss", "unlearned", method, storage)) for seed, run in runs]
    quantized = [
        (seed, value_of(run, "M4", "unlearned", method, storage, fmt) - value_of(run, "M4", "target", None, None, fmt))
        for seed, run in runs
        for fmt in COARSE
    ]
    gains, backs, utilities = ([(seed, one[i]) for seed, one in own] for i in range(3))
    lr = next(row.lr for row in runs[0][1].rows if (row.method, row.storage) == (method, storage) and row.lr)
    return Cure(
        f"{method.partition('+')[0]}, {storage}",
        depth,
        lr,
        *map(over_seeds, (losses, gains, backs, utilities, quantized)),
    )


def value_of(
    run: Run, metric: str, model: str, method: str | None = None, storage: str | None = None, fmt: str = "none"
) -> float:
    """Return a value of a run.

    Raises:
        ValueError: the run has none.
    """
    value = run.value(metric, model, method, storage, fmt)
    if value is None:
        raise ValueError(f"a run of a study must have {metric} of {model} {method} {storage} {fmt}, got none")
    return value


def cure_rows(found: Sequence[Cure]) -> list[tuple[str, ...]]:
    """Return a line for each cure: how deep, what it is, gain, share that came back, points of M4."""
    return [
        (
            *(
                words(cure.depth) if cure.depth != END else "as far as it went",
                cure.name,
                f"{cure.lr:g}",
                f"{cure.loss.value:.2f}",
                cure.gain.text(number),
                cure.back.text(share),
            ),
            *(cure.utility.text(_points), cure.quantized_utility.text(_points), str(cure.gain.seeds)),
        )
        for cure in found
    ]


def _points(x: float) -> str:
    return f"{x:+.0f}"
