"""Meets mutants with the tests that can see them, one by one, and remembers every verdict as soon as it is known.

The session is cosmic-ray's (`cr-report`, `cr-html` read it): one transaction a verdict, so `kill -9` loses at most the
mutants that were running.

Takes a mutant and a worker; gives a `Verdict`, which a `Session` keeps in a file.

>>> judged({"outcome": 1, "failed": {"test_x": "E"}, "last": "test_x"})
('killed', 'test_x', 'E')
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from unforgotten.verification.mutation.operators import Mutant, changed_lines, mutated_source
from unforgotten.verification.mutation.seen_by import MAP_EXAMPLES, Seen, Worker, module_name, near_tests

Outcome = Literal["killed", "timeout", "survived", "unseen", "nothing", "error"]
CI_EXAMPLES = 200
SLACK = 2.0
"""A mutant may take this many times the CPU seconds that the test takes without it ..."""

GRACE = 20.0
"""... and these on top, before it counts as one that does not end."""

NEAR_SECONDS = 120.0
"""CPU seconds that a test may take that has not been timed."""

NOT_RUN = frozenset({"nothing", "error"})


@dataclass(frozen=True)
class Verdict:
    """How one mutant fared.

    Attributes:
        outcome: "killed": a test fails, or the module cannot be imported; "timeout": a test does not end; "survived": all
            tests that see it pass; "unseen": no test runs it; "nothing": the change changes nothing; "error": ours.
        killer: the test that failed or did not end.
        how: message of its failure.
        tests: number of tests that the mutant was to meet.
        of: number of tests that can see it; more where they would take longer than the budget.
        cpu: seconds of CPU.
        line: its number in the file.
        before: the line as it is.
        after: the line as mutated.
        revision: commit of the tree whose tests it met.
        once_survived: whether it was killed only by tests that were written because it survived.
    """

    outcome: Outcome
    killer: str | None = None
    how: str | None = None
    tests: int = 0
    of: int = 0
    cpu: float = 0.0
    line: int = 0
    before: str = ""
    after: str = ""
    revision: str = ""
    once_survived: bool = False


def limit(seconds: float) -> float:
    """Return the CPU seconds that a test may take in profile `ci`, from those it took for the map."""
    return GRACE + SLACK * seconds * CI_EXAMPLES / MAP_EXAMPLES


def mutant_job(mutant: Mutant, tree: Path) -> dict[str, Any]:
    """Return what the worker must know of a mutant."""
    path = tree / mutant.path
    changed = mutated_source(mutant, path.read_text("utf-8"))
    return {"module": module_name(mutant.path), "path": str(path), "source": changed}


def affordable(tests: Sequence[str], seen: Seen, budget: float) -> list[str]:
    """Return the first tests that take `budget` CPU seconds in profile `ci`, if every one scales with its examples."""
    total = accumulate(seen.seconds[t] * CI_EXAMPLES / MAP_EXAMPLES for t in tests)
    return [t for t, until in zip(tests, total, strict=True) if until <= budget or t == tests[0]]


def meet(
    mutant: Mutant,
    tree: Path,
    seen: Seen,
    worker: Worker,
    *,
    budget: float = math.inf,
    banned: frozenset[str] = frozenset(),
) -> Verdict:
    """Run the tests that can see a mutant, as far as the budget goes, until one fails."""
    job = mutant_job(mutant, tree)
    if job["source"] is None:
        return Verdict("nothing")
    line, before, after = changed_lines((tree / mutant.path).read_text("utf-8"), job["source"])
    every = [t for t in seen.tests(mutant) if t not in banned]
    tests = affordable(every, seen, budget)
    if not tests:
        return Verdict("unseen", line=line, before=before, after=after)
    told = worker(**job, tests=tests, limits={t: limit(seen.seconds[t]) for t in tests})
    outcome, killer, how = judged(told)
    cpu = round(told["cpu"], 2)
    return Verdict(outcome, killer, how, len(tests), len(every), cpu, line, before, after)


def meet_near(mutant: Mutant, tree: Path, worker: Worker) -> Verdict:
    """Run the test files that import the mutated module, until one test fails."""
    job = mutant_job(mutant, tree)
    if job["source"] is None:
        return Verdict("nothing")
    line, before, after = changed_lines((tree / mutant.path).read_text("utf-8"), job["source"])
    files = near_tests(tree, mutant.path)
    if not files:
        return Verdict("unseen", line=line, before=before, after=after)
    told = worker(**job, tests=[], files=files, each=NEAR_SECONDS)
    outcome, killer, how = judged(told)
    met = len(told["seconds"])
    return Verdict(outcome, killer, how, met, met, round(told["cpu"], 2), line, before, after)


def judged(told: Mapping[str, Any]) -> tuple[Outcome, str | None, str | None]:
    """Return what a fork's ending says of the mutant: outcome, killer, how."""
    ended, failed = told["outcome"], told["failed"]
    if failed and ended in (1, 2):  # 2: a test file cannot be imported
        killer, how = next(iter(failed.items()))
        return "killed", killer, how
    match ended:
        case 0:
            return "survived", None, None
        case "timeout" | "hangs":
            return "timeout", told["last"], ended
        case 4:  # conftest.py cannot be imported
            return "killed", None, "the package cannot be imported"
        case "signal 11" | "signal 6" | "signal 8":
            return "killed", told["last"], ended
        case _:
            return "error", told["last"], str(ended)


class Session:
    """cosmic-ray's database of mutants and verdicts, in a file."""

    def __init__(self, path: Path) -> None:
        from cosmic_ray.work_db import WorkDB

        self.db = WorkDB(str(path), WorkDB.Mode.create)

    def add(self, mutants: Iterable[Mutant], tree: Path) -> None:
        """Enter the mutants that are not in it yet."""
        from cosmic_ray.work_item import MutationSpec, WorkItem

        known = {item.job_id for item in self.db.work_items}
        self.db.add_work_items(
            WorkItem.single(m.id, MutationSpec(tree / m.path, m.operator, m.occurrence, m.start, m.end, {}, m.function))
            for m in mutants
            if m.id not in known
        )

    def verdicts(self) -> dict[str, Verdict]:
        return {str(job): Verdict(**json.loads(str(r.output))) for job, r in self.db.results}

    def set(self, mutant: Mutant, verdict: Verdict) -> None:
        """Enter or replace a verdict."""
        from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

        if verdict.outcome in NOT_RUN:
            worker, test = WorkerOutcome.SKIPPED, TestOutcome.INCOMPETENT
        else:
            alive = verdict.outcome in ("survived", "unseen")
            worker = WorkerOutcome.NORMAL
            test = TestOutcome.SURVIVED if alive else TestOutcome.KILLED
        diff = f"@@ {mutant.path}:{verdict.line} @@\n-{verdict.before}\n+{verdict.after}\n"
        self.db.set_result(mutant.id, WorkResult(worker, json.dumps(asdict(verdict)), test, diff))

    def close(self) -> None:
        self.db.close()


def meet_all(
    mutants: Sequence[Mutant],
    judge: Callable[[Mutant, Worker], Verdict],
    workers: Sequence[Worker],
    done: Callable[[Mutant, Verdict], bool],
) -> None:
    """Judge the mutants in order, a worker each at a time, until they are through or `done` returns True."""
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def one(mutant: Mutant) -> Verdict:
        worker = idle.get()
        try:
            return judge(mutant, worker)
        finally:
            idle.put(worker)

    rest = iter(mutants)
    with ThreadPoolExecutor(len(workers)) as pool:
        running: dict[Future[Verdict], Mutant] = {}
        stop = False
        while True:
            while not stop and len(running) < len(workers) and (m := next(rest, None)) is not None:
                running[pool.submit(one, m)] = m
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stop = done(running.pop(future), future.result()) or stop


def false_killers(verdicts: Iterable[Verdict], seen: Seen, worker: Worker) -> frozenset[str]:
    """Find the killers that fail, or do not end, without a mutant under equal limits: their kills say nothing."""
    killers = sorted({v.killer for v in verdicts if v.killer and v.killer in seen.seconds})
    bad: set[str] = set()
    while rest := [k for k in killers if k not in bad]:
        told = worker(tests=rest, stop=False, limits={k: limit(seen.seconds[k]) for k in rest})
        bad |= set(told["failed"])
        if told["outcome"] in (0, 1):
            break
        if told["last"] not in rest:
            raise RuntimeError(f"the killers must run without a mutant, got {told['outcome']}")
        bad.add(told["last"])  # it ended the process: the others are run again
    return frozenset(bad)
