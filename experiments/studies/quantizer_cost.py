"""What Q costs, side by side: the numpy reference and the torch path against bitsandbytes on the CPU.

Every round times all three in turn, in one process, and gives ratios; seconds of one machine would say little elsewhere.
The last row is of the command `bound`, which is to take little more than Python does to load what it computes with.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from unforgotten.audit.progress.stages import Progress
from unforgotten.experiments.arms.processor import processor
from unforgotten.experiments.quantizers.bitsandbytes import bitsandbytes_values
from unforgotten.experiments.quantizers.own import own_values
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.study import Study
from unforgotten.records.files import write_json_lines
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import round_trip

ROUNDS = 5
SHAPE = (1024, 4096)
FORMATS = ("nf4-b64", "fp4-b64", "llmint8-row")
YARDSTICK = "bitsandbytes"
PATHS: Mapping[str, Callable[[Tensor, str], Tensor]] = {
    "numpy reference": lambda w, name: torch.from_numpy(round_trip(w.numpy(), format_named(name))),
    "torch path": own_values,
    YARDSTICK: bitsandbytes_values,
}
BOUND = ("-m", "unforgotten.cli", "bound", "--format", "int4-g64", "--std", "0.02", "--lr", "1e-5", "--steps", "500")
LOADING = ("-c", "import numpy, scipy.optimize, scipy.special")


def time_paths(w: Tensor, name: str) -> dict[str, float]:
    """Return the seconds of one call of each path."""
    seconds = {}
    for path, values in PATHS.items():
        start = time.perf_counter()
        values(w, name)
        seconds[path] = time.perf_counter() - start
    return seconds


def ratios(w: Tensor, name: str, rounds: int) -> dict[str, list[float]]:
    """Return for each path its time over that of bitsandbytes in the same round, ascending.

    Raises:
        ValueError: the paths disagree on a value, so their times must not be compared.
    """
    expected = PATHS[YARDSTICK](w, name)  # also the warm-up
    for path, values in PATHS.items():
        if not torch.equal(values(w, name), expected):
            raise ValueError(f"{path} must equal {YARDSTICK} in every value of {name}, got a difference")
    seconds = [time_paths(w, name) for _ in range(rounds)]
    return {path: sorted(s[path] / s[YARDSTICK] for s in seconds) for path in PATHS}


def processor_seconds(arguments: Sequence[str]) -> float:
    """Return the seconds of processor, user and system, of a Python of its own: other jobs do not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bound_ratios(rounds: int) -> list[float]:
    """Return ratios of processor time, ascending: `bound` to a Python that only loads numpy and scipy."""
    return sorted(processor_seconds(BOUND) / processor_seconds(LOADING) for _ in range(rounds))


class CostSettings(Section):
    """What is timed.

    Attributes:
        formats: formats of bitsandbytes.
        shape: shape of the weights.
        rounds: rounds of each format.
    """

    formats: tuple[str, ...] = FORMATS
    shape: tuple[int, int] = SHAPE
    rounds: int = Field(default=ROUNDS, ge=1)


def _measure(settings: CostSettings, folder: Path, progress: Progress) -> None:
    w = 0.02 * torch.randn(settings.shape, generator=torch.Generator().manual_seed(0))
    common = {"processor": processor(), "threads": torch.get_num_threads(), "shape": list(settings.shape)}
    rows: list[dict[str, Any]] = []
    for name in settings.formats:
        with progress.stage(f"time {name}"):
            found = ratios(w, name, settings.rounds)
        rows += [{"of": path, "over": YARDSTICK, "format": name, "ratios": values} for path, values in found.items()]
    with progress.stage("time the command bound"):
        rows.append({"of": "bound", "over": "scipy", "format": None, "ratios": bound_ratios(settings.rounds)})
    write_json_lines(folder / "rows.jsonl", (row | common for row in rows if row["of"] != YARDSTICK))


STUDY = Study(CostSettings, lambda settings: len(settings.formats) + 1, _measure)
