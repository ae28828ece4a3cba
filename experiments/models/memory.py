"""Whether a model fits into memory, said before it is loaded: a system that runs out of memory ends a process without a word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.errors import CheckpointError

GIB = 2**30
BESIDE = GIB
"""What is in memory beside copies of the model: torch, texts, logits and keys of one batch."""
FLOAT32 = 4
BYTES: Mapping[str, int] = {"float32": FLOAT32, "bfloat16": 2, "float16": 2}
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class Copies(NamedTuple):
    """What a leg holds of a model at most.

    Attributes:
        models: models that run, each of all weights in the dtype that they run in.
        parts: float32 copies of single tensors, as a share of all weights.
    """

    models: int
    parts: float

    def bytes_of(self, weights: int, dtype: str) -> int:
        """Return the bytes of them."""
        return round(weights * (self.models * BYTES[dtype] + FLOAT32 * self.parts))


def check_memory(folder: Path, copies: Copies, dtype: str = "float32") -> None:
    """Refuse a model of which so many copies, and BESIDE, do not fit into what is free.

    Says nothing where the system does not say what is free, or the weights are no safetensors.

    Args:
        folder: directory of the model.
        copies: what is held of it.
        dtype: dtype that models run in.

    Raises:
        ValueError: they do not fit; one line that begins with the folder.
    """
    free, weights = free_bytes(), count_weights(folder)
    if free is None or weights is None:
        return
    needed = copies.bytes_of(weights, dtype) + BESIDE
    if needed > free:
        models = f"{copies.models} {dtype} model{'s' if copies.models > 1 else ''}"
        rule = (
            f"needs {needed / GIB:.1f} GiB of memory, {models}, {copies.parts} of a float32 one "
            f"and {BESIDE / GIB:.0f} GiB"
        )
        raise ValueError(f"{folder}: {rule}, got {free / GIB:.1f} GiB free")


def count_weights(folder: Path) -> int | None:
    """Count the weights that a directory of safetensors holds; None for another."""
    try:
        return sum(math.prod(info.shape) for info in open_checkpoint(folder).tensors.values())
    except CheckpointError:
        return None


def free_bytes() -> int | None:
    """Return the bytes that a process may still take, by the system and by its control group; None where neither says."""
    said = [_system_free(), _group_free()]
    return min((value for value in said if value is not None), default=None)


def _system_free() -> int | None:
    if not MEMINFO.exists():
        return None
    lines = (line.split() for line in MEMINFO.read_text().splitlines())
    return next((1024 * int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]), None)


def _group_free() -> int | None:
    """Return what the limit of the control group leaves; pages of files in memory count as free, they can be dropped."""
    limit, used, kinds = (CGROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    try:
        most, now = limit.read_text().strip(), int(used.read_text())
        cached = next(
            int(line.split()[1]) for line in kinds.read_text().splitlines() if line.startswith("inactive_file ")
        )
    except (OSError, ValueError, StopIteration):
        return None
    return None if most == "max" else int(most) - now + cached
