"""Writes the rows of a run as another program writes its own, so that its readers take them.

export(Path("runs/tiny-seed0"), "muse", Path("out"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from unforgotten.records.files import write_folder
from unforgotten.records.packed_rows import rows_path
from unforgotten.records.rows import read_run
from unforgotten.reports.exports import lm_eval, muse, openunlearning
from unforgotten.reports.exports.measured_models import MeasuredModel, measured_models


class Exporter(NamedTuple):
    """A program's files: what is written, and the function that writes them into an empty folder."""

    statement: str
    write: Callable[[Sequence[MeasuredModel], Path], None]


def exporters(written: datetime) -> Mapping[str, Exporter]:
    """Return the programs by name, for rows that were written at a time."""
    return {
        lm_eval.NAME: Exporter(lm_eval.STATEMENT, partial(lm_eval.write, written=written)),
        muse.NAME: Exporter(muse.STATEMENT, muse.write),
        openunlearning.NAME: Exporter(openunlearning.STATEMENT, openunlearning.write),
    }


def export(folder: Path, program: str, out: Path) -> list[Path]:
    """Write the models of a run for a program, all files or none; return the files.

    Args:
        folder: directory of the run.
        program: name of one of `exporters`.
        out: folder that must not be there, or be empty.

    Raises:
        ValueError: the program is unknown, the folder holds no run, items are missing, or `out` holds files.
    """
    known = exporters(datetime.fromtimestamp(0, UTC))
    if program not in known:
        raise ValueError(f"--as must be one of {', '.join(known)}, got {program!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: must be empty or missing, got other files")
    models = list(measured_models(folder, read_run(folder)))
    written = datetime.fromtimestamp(rows_path(folder).stat().st_mtime, UTC)
    write_folder(out, partial(exporters(written)[program].write, models))
    return sorted(path for path in out.rglob("*") if path.is_file())
