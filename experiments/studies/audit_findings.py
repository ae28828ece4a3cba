"""How often the audit's findings are right: dead zones of runs whose storage is known, wash on honest and on placed pairs.

Settings: the folders of runs, with their models. `findings.jsonl` gets one row a pair. The runs' pairs: the target against
each of its unlearned models (for the dead zone), and any two models of one run (for false alarms: all come from training,
and no update was aimed at a grid). Synthetic ones come from `pairs.audit_findings_pairs`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from unforgotten.audit import DEFAULT_FORMATS, open_pair, weights_leg
from unforgotten.audit.findings.probe import look
from unforgotten.audit.findings.training_estimate import typical_steps
from unforgotten.audit.findings.wash import candidates, wash_findings
from unforgotten.audit.progress.stages import Progress
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.pairs.audit_findings_pairs import DTYPES, SIZES, save_pair
from unforgotten.experiments.studies.study import Study
from unforgotten.records.depths import state_name
from unforgotten.records.files import read_json_lines, write_json_lines

HONEST_SEEDS = 120  # of each kind and dtype
PLACED_SEEDS = 10
PLACED_SIZE = 0.05  # in standard deviations: about a third of NF4's narrowest cell
MODELS_OF = "models"


def measure(first: Path, second: Path) -> dict[str, Any]:
    """Audit one pair and return its flagged tests, its wash findings and its dead zone."""
    before, after = open_pair(first, second)
    leg = weights_leg(before, after, DEFAULT_FORMATS)
    samples = look(before, after, [t.name for t in leg.tensors], DEFAULT_FORMATS)
    found = wash_findings(leg, samples)
    flagged = candidates(leg)
    zone, typical = leg.dead_zone, typical_steps(leg)
    total = next(iter(leg.totals.values()))
    return {
        "weights": total.weights,
        "unchanged": total.unchanged,
        "tests": len(leg.tensors) * len(DEFAULT_FORMATS),
        "flagged": len(flagged),
        "largest_z": max((c.test.z for c in flagged), key=abs, default=None),
        "wash": [{"format": f["format"], "tensor": f["tensor"], "ratio": f["effect"]} for f in found],
        "dead_zone": zone.detected,
        "threshold": zone.threshold if zone.detected else None,
        "largest_steps": list(zone.lr_estimate) if zone.detected else None,
        "typical_steps": None if typical is None else list(typical),
        "sha256": [before.sha256(), after.sha256()],
    }


def run_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for every pair of models of one run, the target first where it is one of them."""
    lines = read_json_lines(folder / "rows.jsonl")
    arm_of = {
        state_name(r["method"], r["storage"], r.get("depth")): (r["storage"], r["lr"])
        for r in lines
        if r["lr"] is not None
    }
    names = sorted(p.name for p in (folder / MODELS_OF).iterdir() if p.is_dir())
    names.sort(key=lambda name: name != "target")
    for first, second in combinations(names, 2):
        unlearning = first == "target" and second in arm_of
        storage, lr = arm_of[second] if unlearning else (None, None)
        yield {
            "kind": "unlearning" if unlearning else "training",
            "run": folder.name,
            "first": first,
            "second": second,
            "storage": storage,
            "lr": lr,
            **measure(folder / MODELS_OF / first, folder / MODELS_OF / second),
        }


def synthetic_rows(honest: int = HONEST_SEEDS, placed: int = PLACED_SEEDS) -> Iterator[Any]:
    """Yield a row for each of the pairs of `pairs.audit_findings_pairs`: honest ones of many sizes, and placed ones."""
    kinds = {"gaussian": honest, "sign": honest, "washed": placed, "aimed": placed}
    for kind, count in kinds.items():
        for dtype in DTYPES if kind in ("gaussian", "sign") else ("float32",):
            for seed in range(count):
                size = _size(seed, count) if kind in ("gaussian", "sign") else PLACED_SIZE
                with tempfile.TemporaryDirectory() as folder:
                    pair = save_pair(Path(folder), kind, seed, dtype, size)
                    row = {"kind": kind, "seed": seed, "storage": dtype, "size": size}
                    yield row | measure(*pair)


def _size(seed: int, count: int) -> float:
    """Return the size of an update, evenly spread in the logarithm over SIZES."""
    return float(np.geomspace(*SIZES, count)[seed])


class FindingsSettings(Section):
    """What is audited.

    Attributes:
        runs: folders of runs, with their models.
        honest: synthetic pairs of each honest kind and dtype.
        placed: synthetic pairs of each placed kind.
    """

    runs: tuple[Path, ...]
    honest: int = HONEST_SEEDS
    placed: int = PLACED_SEEDS


def _measure(settings: FindingsSettings, folder: Path, progress: Progress) -> None:
    rows: list[dict[str, Any]] = []
    for run in settings.runs:
        with progress.stage(f"audit pairs of {run.name}"):
            rows += run_rows(run)
    with progress.stage("audit synthetic pairs"):
        rows += synthetic_rows(settings.honest, settings.placed)
    write_json_lines(folder / "findings.jsonl", rows)


STUDY = Study(FindingsSettings, lambda settings: len(settings.runs) + 1, _measure)
