"""The work of a weights leg shared out: to processes of this machine, or to a Ray cluster, a tensor at a time.

A piece of a tensor is measured by itself, and the sums over pieces depend neither on their order nor on who measured
them, so the result is the same, bit for bit, however the work is shared. A worker that is lost costs its own work
again and nothing else. Threads do not share well here: between two compiled passes a piece needs Python's lock.

In: a `Work`, names of tensors, and how many processes there are to be. Out: a `TensorMeasured` for each name, in order:

    work = Work(target, unlearned, (format_named("nf4-b64"),), available_paths()[0])
    sums = list(measure_tensors(work, names, lambda name, done: None, jobs=2))
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice

from unforgotten.audit.kernel.simd import NUMPY
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.pairing import check_finite
from unforgotten.audit.weights.batches import Batch, Work, batches_of, measure_batch
from unforgotten.audit.weights.piece import PieceMeasured, add_pieces
from unforgotten.audit.weights.reading import Fetching
from unforgotten.audit.weights.reference import measure_by_reference
from unforgotten.audit.weights.sums import TensorMeasured
from unforgotten.audit.weights.task import NotFiniteError, RefusedError, TensorTask, ways_in
from unforgotten.audit.weights.warming import compile_for
from unforgotten.theory.formats.gguf import fallback_of

MAX_LOSSES = 3  # of workers in a row without a batch done
FILES: Mapping[str, str] = {"q3_k": "Q3_K_M", "q4_k": "Q4_K_M", "q5_k": "Q5_K_M", "q6_k": "Q6_K"}
"""Type of super-blocks -> the mix of llama.cpp that holds it, and another for rows that it does not fit."""
WARM = "unforgotten.audit.weights.warm_up"
Report = Callable[[str, int], None]
"""Told the tensor that comes next and how many are done."""


def measure_tensors(
    work: Work, names: Sequence[str], report: Report, *, jobs: int = 1, ray: str | None = None
) -> Iterator[TensorMeasured]:
    """Measure the tensors in their order.

    Args:
        work: the pair and the formats.
        names: names of the tensors.
        report: function that is called before each tensor.
        jobs: number of processes, >= 1.
        ray: address of a Ray cluster, as `ray.init` takes it, instead. Its nodes must see the same files.

    Raises:
        ValueError: jobs is below 1, or Ray is not installed.
        CheckpointError: a weight is not finite, or a format cannot take a tensor.
        ChildProcessError: workers are lost again and again.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got jobs={jobs}")
    if work.simd == NUMPY:
        for done, name in enumerate(names):
            report(name, done)
            with _naming(work, name):
                measured = measure_by_reference(work, name)
            yield measured
        return
    batches = {name: batches_of(work, name) for name in names}
    if ray is not None:
        from unforgotten.audit.weights.ray_cluster import RayWorkers

        found = RayWorkers(ray).measure(work, [b for own in batches.values() for b in own])
    elif jobs > 1:
        found = _by_processes(work, [b for own in batches.values() for b in own], jobs)
    else:
        found = (measure_batch(work, b) for own in batches.values() for b in own)
    for done, (name, own) in enumerate(batches.items()):
        report(name, done)
        yield _tensor(work, name, found, len(own))
    next(found, None)  # nothing is left, and its workers end here


def _tensor(work: Work, name: str, found: Iterator[list[PieceMeasured]], count: int) -> TensorMeasured:
    with _naming(work, name):
        rows = [row for part in islice(found, count) for row in part]
        pair = work.target, work.unlearned
        formats = work.formats_of(name)
        ways = ways_in(pair, name, formats, work.simd)
        whole = TensorTask(pair, name, formats, {}, work.simd, ways)
        return add_pieces(whole, rows)


@contextmanager
def _naming(work: Work, name: str) -> Iterator[None]:
    """Say which weight of the tensor is not finite, or which format cannot take it."""
    try:
        yield
    except (RefusedError, NotFiniteError) as error:
        check_finite(work.target, name)
        check_finite(work.unlearned, name)
        if not isinstance(error, RefusedError):
            raise
        info = work.unlearned.tensors[name]
        other = fallback_of(error.format, info.shape[-1])
        hint = "" if other is None else _hint(error.format, other)
        raise CheckpointError(info.path, f"must fit {error.format}{hint}", error, tensor=name) from error


def _hint(fmt: str, other: str) -> str:
    """Return what llama.cpp does with rows that super-blocks do not fit, and which mix does the same, in brackets."""
    see = "" if other == "float16" else f": see gguf:{FILES[fmt]}"
    return f" (llama.cpp stores such rows as {other}{see})"


def _by_processes(work: Work, batches: Sequence[Batch], jobs: int) -> Iterator[list[PieceMeasured]]:
    """Yield the batches in their order; those that a lost worker took with it are given out again."""
    compile_for(work, dict.fromkeys(batch.name for batch in batches))
    waiting = dict(enumerate(batches))
    done: dict[int, list[PieceMeasured]] = {}
    losses, following, lost = 0, 0, ""
    while waiting:
        with _pool(work, jobs) as pool:
            futures = {k: pool.submit(_measure_here, batch) for k, batch in waiting.items()}
            try:
                for k, future in futures.items():
                    lost = batches[k].name
                    done[k] = future.result()
                    del waiting[k]
                    losses = 0
                    while following in done:
                        yield done.pop(following)
                        following += 1
            except BrokenProcessPool as error:
                losses += 1
                if losses > MAX_LOSSES:
                    rule = f"{losses} workers were lost, the last at tensor"
                    raise ChildProcessError(f"{rule} {lost!r}") from error
            except BaseException:
                for worker in list((pool._processes or {}).values()):
                    worker.terminate()  # or leaving the pool would wait for their batches
                raise


def _pool(work: Work, jobs: int) -> ProcessPoolExecutor:
    """Return a pool of workers, forked from a server that has the kernels loaded and no threads, where there is one."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([WARM])
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(work,))


class _Worker:
    """What a worker process has from its begin on: the work, which is sent to it once, and how it reads files."""

    work: Work
    fetching: Fetching

    def begin(self, work: Work) -> None:
        """Take the work; an interrupt is the parent's business."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.work, self.fetching = work, Fetching()

    def measure(self, batch: Batch) -> list[PieceMeasured]:
        """Measure a batch of the work."""
        with self.fetching.of(batch.last - batch.first):
            return measure_batch(self.work, batch)


_WORKER = _Worker()
"""The worker that this process is, if it is one: a pool sends functions by their names, so what they need has one too."""


def _begin(work: Work) -> None:
    """Set up this worker."""
    _WORKER.begin(work)


def _measure_here(batch: Batch) -> list[PieceMeasured]:
    """Measure a batch in this worker."""
    return _WORKER.measure(batch)
