"""What Q costs, side by side: the numpy reference and the torch path against bitsandbytes on the CPU.

Every round times all three in turn, in one process, and gives ratios; seconds of one machine would say little elsewhere.
So does the last line, on the command `bound`: it is to take little more than Python does to load what it computes with.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unforgotten.experiments.quantizers.registry import bitsandbytes_values, own_values
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
    """Seconds of one call of each path."""
    seconds = {}
    for path, values in PATHS.items():
        start = time.perf_counter()
        values(w, name)
        seconds[path] = time.perf_counter() - start
    return seconds


def ratios(w: Tensor, name: str) -> dict[str, list[float]]:
    """For each path its time over that of bitsandbytes in the same round, ascending, ROUNDS of them.

    Raises:
        ValueError: the paths disagree on a value, so their times must not be compared.
    """
    expected = PATHS[YARDSTICK](w, name)  # also the warm-up
    for path, values in PATHS.items():
        if not torch.equal(values(w, name), expected):
            raise ValueError(f"{path} must equal {YARDSTICK} in every value of {name}, got a difference")
    rounds = [time_paths(w, name) for _ in range(ROUNDS)]
    return {path: sorted(r[path] / r[YARDSTICK] for r in rounds) for path in PATHS}


def processor_seconds(arguments: Sequence[str]) -> float:
    """Seconds of processor, user and system, of a Python of its own: other jobs of the machine do not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bound_ratios() -> list[float]:
    """Return ROUNDS ratios of processor time, ascending: `bound` to a Python that only loads numpy and scipy."""
    return sorted(processor_seconds(BOUND) / processor_seconds(LOADING) for _ in range(ROUNDS))


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest of ascending values."""
    return f"{statistics.median(values):6.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def main() -> None:
    """Print one line for each format and path, and one for `bound`."""
    w = 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    print(f"quantize and dequantize {SHAPE[0]} x {SHAPE[1]} float32, {torch.get_num_threads()} threads of torch")
    print(f"time as a multiple of {YARDSTICK}: median (lowest to highest) of {ROUNDS} rounds")
    for name in FORMATS:
        for path, values in ratios(w, name).items():
            if path != YARDSTICK:
                print(f"{name:12} {path:16} {spread(values)}")
    print(f"`unforgotten bound` as a multiple of a Python that loads scipy: {spread(bound_ratios())}")


if __name__ == "__main__":
    main()
