"""Bases that come trained, on a sample of MUSE-News: the published runs of one, and those of the study `real-bases`.

for one in over_arms(real_arms(Evidence(Path("reports/published")))):
    print(one.level, one.method, one.storage, one.format, one.gain.value)
"""

from __future__ import annotations

from unforgotten.reports.verdicts.claim import Table
from unforgotten.reports.verdicts.cures import FOLDER, Runs, runs_of
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.scaling import arm_table, over_arms

STUDY = "real-bases"


def real_runs(evidence: Evidence) -> tuple[str, ...]:
    """Return the names of the published runs that are of no study and begin with a base that comes trained."""
    return tuple(name for name in evidence.runs if not name.startswith("tiny") and "smoke" not in name)


def real_arms(evidence: Evidence) -> dict[tuple[str, str, str], Runs]:
    """Return the runs with their seeds by base, method and storage: those of no study first."""
    found: dict[tuple[str, str, str], Runs] = {}
    for name in real_runs(evidence):
        place = FOLDER.fullmatch(name)
        if place is None:
            continue
        for run in evidence.run(name).by_depth():
            for method, storage in run.arms:
                found.setdefault((place["level"], method, storage), []).append((int(place["seed"]), run))
    for arm, runs in runs_of(evidence, STUDY).items():
        found.setdefault(arm, []).extend(runs)
    return dict(sorted(found.items()))


def real_tables(evidence: Evidence) -> tuple[Table, ...]:
    """Return the table of gains and of what the cells take back; none without a run."""
    found = over_arms(real_arms(evidence))
    about = (
        "Bases that come trained, SmolLM2-135M and Gemma 3 270M, on 12 to 16 passages of MUSE-News: gain, and share of the added forget loss that cells "
        "take back. Learning rate: 5e-05 (smollm2) and 1e-05 (gemma3), or that of the name. Seeds share the texts; they differ in the order of training"
    )
    return (Table(about, arm_table(found)),) if found else ()
