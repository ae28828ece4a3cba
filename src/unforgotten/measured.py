"""The legs of an audit that run models, made ready to be called once the weights were read; torch loads only then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unforgotten.audit.outputs.write import UNFINISHED
from unforgotten.audit.progress.stages import SILENT, Progress

Leg = Callable[[], Any] | None


def output_of(
    pair: tuple[Path, Path],
    formats: Sequence[str],
    texts: Path | None,
    progress: Progress = SILENT,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    real: tuple[str, str] | None = None,
) -> Leg:
    """Return what measures the output of both models on texts; None without texts."""
    if texts is None:
        return None

    def measure() -> Any:
        with progress.stage("output", "formats") as step:
            from unforgotten.experiments.legs.output import output_leg

            return output_leg(*pair, formats, texts, step=step, device=device, dtype=dtype, real=real)

    return measure


def behaviour_of(
    pair: tuple[Path, Path],
    formats: Sequence[str],
    benchmark: Path | None,
    retrained: Path | None,
    progress: Progress = SILENT,
    *,
    items: int | None = None,
    decompose: bool = True,
    out: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    real: tuple[str, str] | None = None,
) -> Leg:
    """Return what measures M1-M4 of both models on a benchmark; None without one.

    What each model answers is kept in `out` until the audit is done, so that one that was cut off goes on.
    """
    if benchmark is None:
        return None

    def measure() -> Any:
        with progress.stage("behaviour", "models") as step:
            from unforgotten.experiments.legs.behaviour import behaviour_leg

            kept = None if out is None else out / UNFINISHED
            return behaviour_leg(
                *pair,
                formats,
                benchmark,
                retrained=retrained,
                items=items,
                decompose=decompose,
                step=step,
                unfinished=kept,
                device=device,
                dtype=dtype,
                real=real,
            )

    return measure


def left_behind(out: Path) -> str:
    """Return what an interrupted audit left in its directory, as a clause."""
    unfinished = out / UNFINISHED
    if unfinished.is_dir():
        return f"no result was written; the same command goes on from what is in {unfinished}"
    return "nothing was written"
