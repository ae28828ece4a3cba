"""The lines that `unforgotten forecast` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from unforgotten.theory.calculators.forecast import LEVEL, LIMIT, Forecast, Replayed


def lines(paths: Sequence[Replayed], told: Sequence[Forecast], *, steps: int | None = None) -> list[str]:
    """Return how each storage was replayed, a line for each of its formats, and what the ranges leave out.

    Args:
        paths: replays.
        told: forecasts.
        steps: number of steps, where it was asked for.
    """
    found = []
    for path in paths:
        found.append(_replayed(path, steps))
        found += [_format(one) for one in told if one.storage == path.storage]
    share = f"{LEVEL:.0%}"
    found.append(
        f"gain: share of the update that is left; functional gain: the same along the last gradients, 1 - it comes back by "
        f"gating, to first order. Ranges: {share} for the choice of blocks alone; how far forecasts were from measured "
        "gains stands in reports/published/forecast."
    )
    return found


def as_object(paths: Sequence[Replayed], told: Sequence[Forecast]) -> dict[str, Any]:
    """Return the forecasts for JSON: what is undefined becomes None."""
    replays = {path.storage: {"slower": path.slower, "steps": path.steps, "progress": path.progress} for path in paths}
    rows = [
        {key: _known(value) for key, value in asdict(one).items()} | {"returned": _known(one.returned)} for one in told
    ]
    return {"replays": replays, "formats": rows}


def _replayed(path: Replayed, asked: int | None) -> str:
    how = f"{path.storage}: {path.steps} steps, {path.slower:.1f} times the pilot's"
    if asked is not None:
        return f"{how}; it goes {path.progress:.0%} as far"
    if path.progress < 1:
        return f"{how}; it went only {path.progress:.0%} as far, more than {LIMIT} times were not tried"
    return how


def _format(one: Forecast) -> str:
    if math.isnan(one.gain):
        return f"  {one.format:12} undefined: nothing moves"
    gain, functional = (f"{low:.2f} to {high:.2f}" for low, high in (one.gain_range, one.functional_range))
    return (
        f"  {one.format:12} gain {one.gain:.2f} ({gain}), functional gain {one.functional_gain:.2f} ({functional}), "
        f"comes back {one.returned:+.0%}"
    )


def _known(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
