"""What each format costs an audit, side by side: the weights leg of one pair in each, over that in nf4-b64.

Every round measures all formats in turn, in one process and by one path of the kernel, and gives ratios; the first round, which
compiles, is not counted. Formats that hang on a mean over the tensor are measured by numpy, and their ratios say what that takes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from pydantic import Field
from safetensors.numpy import save_file

from unforgotten.audit.kernel.simd import VARIABLE, available_paths, processor
from unforgotten.audit.progress.stages import Progress
from unforgotten.audit.sources.checkpoint import Checkpoint, open_checkpoint
from unforgotten.audit.weights.leg import weights_leg
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.study import Study
from unforgotten.records.files import write_json_lines

YARDSTICK = "nf4-b64"
FORMATS = (
    *(f"int4-{block}" for block in ("tensor", "row", "g64", "g128")),
    *(f"int4-g64{rule}" for rule in ("-asym", "-paper", "-ct", "-ct-asym", "-ao", "-ao-asym")),
    *("int3-g64", "int8-row", "llmint8-row", "hqq4-g64", "hqq4-g64-opt", "fp4-b64", "nf4-b64-dq"),
    *("fp8-row", "fp8-tensor", "fp8-b128x128", "fp8-cast", "mxfp4-b32", "mxfp4-b32-ct", "nvfp4"),
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q3_k", "q4_k", "q5_k", "q6_k", "gguf:Q4_K_M"),
)
NAMES = ("model.layers.0.self_attn.v_proj.weight", "model.layers.0.mlp.down_proj.weight")
"""Of a model of one layer, which a mix knows."""


class FormatCostSettings(Section):
    """What is timed.

    Attributes:
        formats: formats beside nf4-b64.
        rows, columns: shape of each of the two matrices, bfloat16.
        update: standard deviation of the update over that of the weights, before it is rounded to bfloat16.
        rounds: rounds that are counted.
    """

    formats: tuple[str, ...] = FORMATS
    rows: int = Field(default=1024, ge=1)
    columns: int = Field(default=2048, ge=256, multiple_of=256)
    update: float = Field(default=1e-3, gt=0)
    rounds: int = Field(default=3, ge=1)


def write_pair(folder: Path, settings: FormatCostSettings) -> tuple[Checkpoint, Checkpoint]:
    """Write and open a pair of bfloat16 weights like those of a model of 7B, std 0.02."""
    rng = np.random.default_rng(0)
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name in NAMES:
        w = rng.normal(0, 0.02, (settings.rows, settings.columns)).astype(np.float32)
        moved = w + rng.normal(0, 0.02 * settings.update, w.shape).astype(np.float32)
        for side, values in zip(sides, (w, moved), strict=True):
            side[name] = values.astype(ml_dtypes.bfloat16)
    for i, side in enumerate(sides):
        save_file(side, folder / f"{i}.safetensors")
    return open_checkpoint(folder / "0.safetensors"), open_checkpoint(folder / "1.safetensors")


@contextmanager
def by_kernel() -> Iterator[None]:
    """Have weights measured by the best path of the kernel that is here, as large pairs are, or by the one that is named."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = before or available_paths()[0]
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]


def time_formats(pair: tuple[Checkpoint, Checkpoint], formats: Sequence[str]) -> dict[str, float]:
    """Return the seconds of the leg in each format alone."""
    seconds = {}
    for name in formats:
        start = time.perf_counter()
        weights_leg(*pair, [name])
        seconds[name] = time.perf_counter() - start
    return seconds


def _measure(settings: FormatCostSettings, folder: Path, progress: Progress) -> None:
    every = (YARDSTICK, *(name for name in settings.formats if name != YARDSTICK))
    with tempfile.TemporaryDirectory() as place, by_kernel():
        pair = write_pair(Path(place), settings)
        found = []
        for k in range(settings.rounds + 1):
            with progress.stage(f"round {k}" if k else "compile"):
                found.append(time_formats(pair, every))
        legs = {name: weights_leg(*pair, [name]).computed for name in every}
    common = {"processor": processor(), "shape": [len(NAMES), settings.rows, settings.columns], "dtype": "bfloat16"}
    rows = [
        {
            "format": name,
            "over": YARDSTICK,
            "path": legs[name]["path"],
            "ways": legs[name]["ways"],
            "ratios": sorted(seconds[name] / seconds[YARDSTICK] for seconds in found[1:]),
        }
        for name in every[1:]
    ]
    write_json_lines(folder / "rows.jsonl", (row | common for row in rows))


STUDY = Study(FormatCostSettings, lambda settings: settings.rounds + 1, _measure)
