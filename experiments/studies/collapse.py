"""Equal codes beside what came back (C1): every cell of every published run, one row each.

A cell is an unlearned model in a format. The paper's explanation is that a small update leaves the codes equal, and with them
the model; here stand the share of codes that are equal, how much of the update passed, and how much of what unlearning added
to the forget loss the cells of the format took back.

Nothing is measured anew: rows of runs go in, and those of `functional-gain`, which know the functional gain of some.

    unforgotten study collapse --out reports/published/collapse
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unforgotten.audit.progress.stages import Progress
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.study import Study
from unforgotten.records.files import read_json_lines, write_json_lines
from unforgotten.records.packed_rows import ROWS_FILE, holds_rows
from unforgotten.records.rows import Run, read_run

FUNCTIONAL = "functional-gain"
LEAST_EFFECT = 0.1
"""Nats of forget loss: less than this is no unlearning, and its shares say nothing."""
KNOWN = ("method", "storage", "seed", "format", "gain", "functional_gain")


class PublishedSettings(Section):
    """Whose rows are read.

    Attributes:
        published: folder with a folder for each published run, and for each study with runs of its own.
    """

    published: Path


def published_runs(published: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and the folder of every run, those of studies as STUDY/RUN, in the order of the names."""
    found = [path.parent for pattern in ("*", "*/*") for path in published.glob(f"{pattern}/config.json")]
    for folder in sorted(folder for folder in found if holds_rows(folder)):
        yield folder.relative_to(published).as_posix(), folder


def cell_rows(name: str, run: Run) -> Iterator[dict[str, Any]]:
    """Yield a row for each unlearned model of a run in each format, where unlearning raised the forget loss at all."""
    for at_depth in run.by_depth():
        before = at_depth.value("forget_loss", "target")
        for method, storage in at_depth.arms:
            after = at_depth.value("forget_loss", "unlearned", method, storage)
            if before is None or after is None or after - before < LEAST_EFFECT:
                continue
            for format_name in at_depth.formats:
                row = _cell(at_depth, (method, storage, format_name), after - before)
                if row is not None:
                    depth = {} if at_depth.depth is None else {"depth": at_depth.depth}
                    yield {"kind": "cell", "run": name, "seed": at_depth.rows[0].seed, **_stored(run), **depth, **row}


def _stored(run: Run) -> dict[str, str]:
    """Return the format that the target was stored in before it was unlearned, where there is one."""
    name = ((run.settings or {}).get("models") or {}).get("stored_in")
    return {} if name is None else {"stored_in": name}


def _cell(run: Run, arm: tuple[str, str, str], added: float) -> dict[str, Any] | None:
    place = ("unlearned", *arm)
    flips, gating = run.get("code_flips", *place), run.get("gating_effect", *place)
    gain = run.value("gain", *place)
    if flips is None or not flips.n or flips.value is None or gating is None or gating.value is None or gain is None:
        return None
    return {
        **dict(zip(("method", "storage", "format"), arm, strict=True)),
        "lr": flips.lr,
        "codes": flips.n,
        "equal": 1 - flips.value / flips.n,
        "moved": _moved(run.value("unchanged_fraction", *place)),
        "expected_flips": run.value("expected_flips", *place),
        "position_distance": run.value("position_distance", *place),
        "gain": gain,
        "added": added,
        "came_back": gating.value / added,
        "stderr": None if gating.stderr is None else gating.stderr / added,
    }


def _moved(unchanged: float | None) -> float | None:
    return None if unchanged is None else 1 - unchanged


def functional_rows(published: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows whose functional gain is known, with the share of the added forget loss that the cells took back."""
    path = published / FUNCTIONAL / ROWS_FILE
    for row in read_json_lines(path) if path.is_file() else []:
        added = row["loss"] - row["target_loss"]
        if added >= LEAST_EFFECT:
            yield {
                "kind": "functional",
                **{name: row[name] for name in KNOWN},
                "came_back": row["came_back_gating"] / added,
            }


def _measure(settings: PublishedSettings, folder: Path, progress: Progress) -> None:
    with progress.stage("read the published runs"):
        rows = [row for name, place in published_runs(settings.published) for row in cell_rows(name, read_run(place))]
        if not rows:
            raise ValueError(f"published must hold runs with rows of pairs, got none below {settings.published}")
        write_json_lines(folder / ROWS_FILE, [*rows, *functional_rows(settings.published)])


STUDY = Study(PublishedSettings, lambda settings: 1, _measure)
