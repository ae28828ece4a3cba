"""The phase diagram of C2: gain over the edge of a storage in units of a format's cell at zero, of every published cell.

Steps of `lr` move a weight only below the edge 2^e of T4, which the dtype of the parameters sets. A format's cell at zero ends
at a share of the block's absmax; where fp4 has two cells at zero, the wide one is the second. Their quotient is known of a
target, a format and a learning rate before anything is trained:

    ratio = edge / (border of the cell * absmax of the median block)

Below 1 the weights that can move lie inside the cell; above it, some cross its border. Nothing is measured anew: rows of runs go
in. Left out are targets that were stored on a grid (T11a), storages that round at random, formats whose scale is no multiple
of the absmax, quantizers whose names have a colon, which do more than round each weight to nearest, and methods whose update is not that of AdamW steps of lr.

    unforgotten study phase-diagram --out reports/published/phase-diagram
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unforgotten.audit.progress.stages import Progress
from unforgotten.experiments.section import Section
from unforgotten.experiments.stand_in import assumed_rows
from unforgotten.experiments.studies.collapse import LEAST_EFFECT, published_runs
from unforgotten.experiments.studies.study import Study
from unforgotten.records.files import write_json_lines
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.records.rows import Row, Run, read_run
from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.geometry.dead_zone import frozen_exponent
from unforgotten.theory.laws.boundary import shape_of

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
"""Dtype of the parameters of the storages that round to nearest."""
OTHERWISE = ("_LoRA", "_push")
"""Ends of methods that do not move weights by AdamW steps of lr alone."""
WIDER = 1.01
"""Factor by which the second cell at zero is wider where it counts, beyond rounding."""
ASSUMED_LRS = (1e-5, 1e-4)
"""Those of the paper: of its methods, and of SURE."""
ASSUMED_FORMATS = ("int3-g64", "int4-g64", "int4-g128", "fp4-b64", "nf4-b64", "int8-row")


class PhaseSettings(Section):
    """Whose rows are read.

    Attributes:
        published: folder with a folder for each published run, and for each study with runs of its own.
        unseen: runs that nobody had looked at when the rule of the table was stated.
    """

    published: Path
    unseen: tuple[str, ...] = ()


def border(fmt: Format) -> float:
    """Return where the cell at zero ends, over the block's absmax: 1/14 for INT4, 0.0398 for NF4, 0.0859 for FP4.

    Of the cell at zero and the next one the wider counts, for a weight in it must leave it to change its value.

    Raises:
        ValueError: the format's scale is no multiple of the absmax.
    """
    shape = shape_of(fmt)
    ends = np.unique(np.abs(shape.thresholds[np.diff(shape.levels) > 0]))
    if len(ends) < 2 or ends[1] - ends[0] <= WIDER * 2 * ends[0]:
        return float(ends[0])
    return float(ends[1])


def phase_rows(name: str, run: Run) -> Iterator[dict[str, Any]]:
    """Yield a row for each unlearned model of a run in each format that the number can be said of."""
    settings = run.settings or {}
    unlearning = settings.get("unlearning") or {}
    if (settings.get("models") or {}).get("stored_in") or unlearning.get("optimizer", "adamw") != "adamw":
        return
    for one in run.by_depth():
        before = one.value("forget_loss", "target")
        for method, storage in one.arms:
            if storage not in DTYPES or method.partition("+")[0].endswith(OTHERWISE):
                continue
            after = one.value("forget_loss", "unlearned", method, storage)
            added = None if before is None or after is None else after - before
            for format_name in one.formats:
                gain = one.get("gain", "unlearned", method, storage, format_name)
                row = None if gain is None else _ratio(one, gain)
                if row is not None:
                    gating = one.value("gating_effect", "unlearned", method, storage, format_name)
                    back = None if gating is None or added is None or added < LEAST_EFFECT else gating / added
                    yield {"kind": "cell", "run": name, **row, "came_back": back}


def _ratio(run: Run, gain: Row) -> dict[str, Any] | None:
    absmax = run.value("block_absmax", "target", None, None, gain.format)
    if gain.value is None or gain.lr is None or gain.storage is None or absmax is None or ":" in gain.format:
        return None
    edge = math.ldexp(1.0, frozen_exponent(gain.lr, DTYPES[gain.storage]))
    end = border(format_named(gain.format)) * absmax
    return {
        "seed": gain.seed,
        "method": gain.method,
        "storage": gain.storage,
        "format": gain.format,
        "depth": gain.depth,
        "lr": gain.lr,
        "block_absmax": absmax,
        "edge": edge,
        "border": end,
        "ratio": edge / end,
        "gain": gain.value,
    }


def assumed_ratios() -> Iterator[dict[str, Any]]:
    """Yield the number of a Llama-2-7B as it is assumed to be, normal weights, in bf16 at the paper's rates."""
    for lr in ASSUMED_LRS:
        rows = assumed_rows(lr=lr, formats=ASSUMED_FORMATS)
        edge = math.ldexp(1.0, frozen_exponent(lr, DTYPES["bf16"]))
        for name in ASSUMED_FORMATS:
            absmax = next(one.value for one in rows[name] if one.metric == "block_absmax")
            if absmax is not None:
                end = border(format_named(name)) * absmax
                yield {"kind": "assumed", "format": name, "lr": lr, "border": end, "edge": edge, "ratio": edge / end}


def _measure(settings: PhaseSettings, folder: Path, progress: Progress) -> None:
    with progress.stage("read the published runs"):
        rows = [
            {**row, "looked_at": name not in settings.unseen}
            for name, place in published_runs(settings.published)
            for row in phase_rows(name, read_run(place))
        ]
        if not rows:
            raise ValueError(f"published must hold runs with rows of pairs, got none below {settings.published}")
        write_json_lines(folder / ROWS_FILE, [*rows, *assumed_ratios()])


STUDY = Study(PhaseSettings, lambda settings: 1, _measure)
