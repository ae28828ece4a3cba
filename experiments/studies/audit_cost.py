"""What an audit costs beside what it replaces and beside reading its files: ratios of one run, as rows.

Every round times all of it in turn, on one pair of bfloat16 checkpoints in the page cache: reading both files; the
weights leg of one format and of several, on one process and on all cores; and what one would do without it, with
bitsandbytes: quantize both, dequantize both, compare. Seconds of one machine say little elsewhere, their ratios more.
The rows name the processor and the path of the kernel; those of another processor or path are kept where they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import llvmlite.binding
import ml_dtypes
import numpy as np

from unforgotten.audit import open_checkpoint, weights_leg
from unforgotten.audit.kernel import simd
from unforgotten.records.audit_cost import COLD
from unforgotten.records.files import write_text

GIB = 1 << 30
ROUNDS = 5
SHAPE = (4096, 8192)  # 64 MiB of bfloat16
STD = 0.02
UPDATES: Mapping[str, float] = {"small": 1e-4, "large": 1e-3}
"""Standard deviations of a Gaussian update. Of the small one two thirds of the weights move in bfloat16 and one block of 64
in five changes its scale; of the large one nearly all do."""
ONE = ("nf4-b64",)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "one": ONE,
    "codebooks": ("nf4-b64", "fp4-b64", "mxfp4-b32", "nvfp4"),
    "defaults": ("int4-g64", "int4-row", "nf4-b64", "fp4-b64", "int8-row"),
}
BUFFER = 1 << 20
YARDSTICK_TENSORS = 2  # of the pair: bitsandbytes takes a minute for all of it
Row = dict[str, Any]


def write_pair(folder: Path, nbytes: int, size: float) -> tuple[Path, Path]:
    """Two checkpoints of `nbytes` bytes of weights each: Gaussian weights, and the same after a Gaussian update."""
    each = 2 * math.prod(SHAPE)
    count = nbytes // each
    entries = {
        f"layers.{i:03}.weight": {"dtype": "BF16", "shape": list(SHAPE), "data_offsets": [i * each, (i + 1) * each]}
        for i in range(count)
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    paths = folder / "target.safetensors", folder / "unlearned.safetensors"
    rng = np.random.default_rng(0)
    with paths[0].open("wb") as before, paths[1].open("wb") as after:
        for file in (before, after):
            file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(count):
            w = (np.float32(STD) * rng.standard_normal(SHAPE, np.float32)).astype(ml_dtypes.bfloat16)
            moved = w.astype(np.float32) + np.float32(size) * rng.standard_normal(SHAPE, np.float32)
            before.write(w.tobytes())
            after.write(moved.astype(ml_dtypes.bfloat16).tobytes())
    return paths


def read_files(paths: Sequence[Path], threads: int) -> None:
    """Read the files into memory that is used again; of sizes of the buffer, BUFFER was the fastest that was found."""

    def read(path: Path, part: int) -> None:
        share = -(-path.stat().st_size // threads)
        buffer = memoryview(bytearray(BUFFER))
        with path.open("rb", buffering=0) as file:
            file.seek(part * share)
            left = share
            while left > 0 and (count := file.readinto(buffer[: min(BUFFER, left)])):
                left -= count

    for path in paths:
        workers = [threading.Thread(target=read, args=(path, k)) for k in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def evict(paths: Sequence[Path]) -> None:
    """Ask the system to keep nothing of the files in memory."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def audit(paths: Sequence[Path], formats: Sequence[str], jobs: int) -> None:
    """Run the audit's weights leg on a pair of checkpoints."""
    target, unlearned = (open_checkpoint(path) for path in paths)
    weights_leg(target, unlearned, formats, jobs=jobs)


def yardstick(paths: Sequence[Path]) -> None:
    """Quantize, dequantize and compare the pair's first tensors by bitsandbytes: NF4 in blocks of 64, on all cores."""
    import torch
    from bitsandbytes import functional
    from safetensors import safe_open

    with safe_open(paths[0], "pt") as before, safe_open(paths[1], "pt") as after:
        for name in sorted(before.keys())[:YARDSTICK_TENSORS]:
            values = []
            for file in (before, after):
                packed, state = functional.quantize_4bit(file.get_tensor(name), blocksize=64, quant_type="nf4")
                values.append(functional.dequantize_4bit(packed, state))
            torch.count_nonzero(values[0] != values[1])


def hash_files(paths: Sequence[Path]) -> None:
    """SHA-256 of both files, which an audit binds its result to: a cost of its own, and not in the leg."""
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def tasks(paths: Sequence[Path], cores: int, *, whole: bool) -> dict[str, Callable[[], None]]:
    """Return the tasks to time, keyed by name and number of processes; the longer ones only if `whole`."""
    found: dict[str, Callable[[], None]] = {
        "read/1": lambda: read_files(paths, 1),
        f"read/{cores}": lambda: read_files(paths, cores),
        f"audit one/{cores}": lambda: audit(paths, ONE, cores),
    }
    if whole:
        found["audit one/1"] = lambda: audit(paths, ONE, 1)
        for group in ("codebooks", "defaults"):
            found[f"audit {group}/{cores}"] = partial(audit, paths, GROUPS[group], cores)
        found[f"bitsandbytes/{cores}"] = lambda: yardstick(paths)
        found["sha256/1"] = lambda: hash_files(paths)
    return found


def time_rounds(paths: Sequence[Path], rounds: int, cores: int, *, whole: bool) -> dict[str, list[float]]:
    """Seconds of every task in every round; all are run once before.

    From disk comes last, as what is read again lies otherwise in the page cache than what was written.
    """
    warm = tasks(paths, cores, whole=whole)
    for task in warm.values():
        task()
    names = ("read/1", f"audit one/{cores}") if whole else ()
    cold = {name.replace("/", f" {COLD}/"): warm[name] for name in names}
    return _time(warm, paths, rounds) | _time(cold, paths, rounds)


def _time(every: Mapping[str, Callable[[], None]], paths: Sequence[Path], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, task in every.items():
            if COLD in name:
                evict(paths)
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_mib(command: Sequence[str]) -> float:
    """Run a command; return the peak of its and its descendants' resident memory, shared pages counted for each."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_resident(pid) for pid in _descendants(process.pid)))
        time.sleep(0.01)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak * os.sysconf("SC_PAGE_SIZE") / 2**20


def _descendants(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def bench_pair(folder: Path, gib: int, update: str, rounds: int, *, whole: bool) -> Row:
    """One row: a pair is written, measured and deleted."""
    cores = os.cpu_count() or 1
    paths = write_pair(folder, gib * GIB, UPDATES[update])
    try:
        script = [sys.executable, "-P", "-m", "unforgotten.experiments.studies.audit_cost", "--dir", str(folder)]
        peaks = {
            f"audit {group}/{jobs}": round(peak_mib([*script, "--only", f"{group}/{jobs}"]))
            for group, jobs in (("one", 1), ("one", cores), ("defaults", cores))
        }
        seconds = time_rounds(paths, rounds, cores, whole=whole)
        sizes = [path.stat().st_size for path in paths]
    finally:
        for path in paths:
            path.unlink()
    return {
        "gib": gib,
        "update": update,
        "weights": gib * GIB // 2,
        "file_bytes": sizes,
        "cores": cores,
        "yardstick_weights": YARDSTICK_TENSORS * math.prod(SHAPE),
        "groups": {k: list(v) for k, v in GROUPS.items()},
        "seconds": {k: [round(s, 4) for s in v] for k, v in seconds.items()},
        "peak_mib": peaks,
        "machine": processor_name(),
        "path": simd.path_for(gib * GIB),
        "compiled_for": simd.processor(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    """Return the name that the processor gives itself, and LLVM's."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    own = next(names, platform.processor() or platform.machine())
    return f"{own}, {llvmlite.binding.get_host_cpu_name()}"


def kept_rows(path: Path, new: Sequence[Row]) -> list[Row]:
    """Return the rows of a file that were not measured again: those of other processors and paths."""
    if not path.exists():
        return []
    again = {(row["machine"], row["path"]) for row in new}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if (row["machine"], row["path"]) not in again]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the rows; `reports.studies.audit_cost` makes a table of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="Where the pairs are written and deleted. Default: a temporary one.")
    parser.add_argument("--out", type=Path, default=Path("audit-bench"), help="Where the rows go.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--large", action="store_true", help="A pair of 2 x 8 GiB too: 16 GiB of disk and of page cache."
    )
    parser.add_argument(
        "--updates",
        default=",".join(UPDATES),
        help="Which updates of the pair of 2 x 2 GiB, with commas. Default: both.",
    )
    parser.add_argument("--only", help="Of a pair that is there: run one group of formats on some processes.")
    asked = parser.parse_args(argv)
    if asked.only:
        group, _, jobs = asked.only.partition("/")
        audit([asked.dir / f"{name}.safetensors" for name in ("target", "unlearned")], GROUPS[group], int(jobs))
        return
    with tempfile.TemporaryDirectory(dir=asked.dir) as folder:
        here = Path(folder)
        cases = [(2, update, True) for update in asked.updates.split(",")]
        cases += [(8, "small", False)] if asked.large else []
        rows: list[Row] = []
        asked.out.mkdir(parents=True, exist_ok=True)
        for gib, update, whole in cases:
            rows.append(bench_pair(here, gib, update, asked.rounds, whole=whole))
            written = asked.out / "rows.jsonl"
            every = [*kept_rows(written, rows), *rows]
            write_text(written, "".join(json.dumps(row) + "\n" for row in every))


if __name__ == "__main__":
    main()
