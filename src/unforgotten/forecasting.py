"""A forecast from a file of recorded gradients, or from the pilot of a run; torch loads only for the latter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unforgotten.audit.options import read_formats
from unforgotten.audit.progress.stages import progress_on
from unforgotten.records.extras import need
from unforgotten.records.gradients import Gradients, read_gradients, write_gradients
from unforgotten.theory.calculators.forecast import Forecast, Pilot, forecast, replayed
from unforgotten.theory.geometry.replay import STORAGES, Adam, Storage

if TYPE_CHECKING:
    from unforgotten.theory.calculators.forecast import Replayed

FORMATS = ("int4-g64", "int4-row", "nf4-b64", "fp4-b64")


def forecast_all(
    source: Path, method: str | None, formats: Sequence[str] | None, storages: str, *, steps: int | None, quiet: bool
) -> tuple[list[Replayed], list[Forecast]]:
    """Return how each storage was replayed, and a forecast for each storage and format.

    Args:
        source: file of gradients, or the directory of a run.
        method: method of the run; none for a file.
        formats: names of formats, with commas or not; FORMATS if None.
        storages: names of storages, with commas.
        steps: number of steps that the run will make; None where it ends at a depth of forgetting.
        quiet: whether to say nothing of the pilot while it is made.

    Raises:
        ValueError: an argument breaks its rule, in one line.
    """
    named = read_formats(formats) or FORMATS
    asked = storages.split(",")
    kinds: list[Storage] = [kind for kind in STORAGES if asked.count(kind)]
    if not kinds or set(asked) - set(STORAGES):
        raise ValueError(f"--storages must be of {', '.join(STORAGES)}, got {storages!r}")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    found = _gradients(source, method, quiet=quiet)
    try:
        sample = Pilot(found.weights, found.row_absmax, found.gradients, found.lr, Adam(**found.settings))
        paths = [replayed(sample, kind, steps=steps) for kind in kinds]
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return paths, [forecast(sample, path, name) for path in paths for name in named]


def _gradients(source: Path, method: str | None, *, quiet: bool) -> Gradients:
    """Read the gradients; those of a run are made where they are not there, and kept in its directory."""
    if not source.is_dir():
        if method is not None:
            raise ValueError(f"--method must be of a run, a directory, got {method!r} for {str(source)!r}")
        return read_gradients(source)
    if method is None:
        raise ValueError(f"--method must name a method of the run {str(source)!r}, got none")
    path = source / f"gradients-{method.rpartition(':')[2]}.npz"
    if not path.exists():
        need("unforgotten[experiments]", "torch", "transformers", "accelerate")
        from unforgotten.experiments.pilot import pilot

        with progress_on(sys.stderr, 1, quiet=quiet) as progress, progress.stage(f"pilot {method}") as step:
            write_gradients(path, pilot(source, method, progress=step))
    return read_gradients(path)
