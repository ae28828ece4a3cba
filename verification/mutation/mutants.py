"""Mutation testing: would the suite notice a mistake in `theory/` or in the quantizers?

    make mutants                                                 # a sample, as long as the night
    python -m unforgotten.verification.mutation.mutants --minutes 30      # go on where the last run stopped
    python -m unforgotten.verification.mutation.mutants --again verification/test_new.py    # survivors meet new tests
    python -m unforgotten.verification.mutation.mutants --planted         # the easiest mistakes, every place of them
    python -m unforgotten.verification.mutation.mutants --planted --near  # the same for code that is new: no map of all tests

Works on a copy of the last commit, mutates no file, and may be killed at any time: the same command goes on.
`published/mutants.json` has the result, `published/mutants-survivors.md` the mutants that lived, and
`published/equivalent-mutants.toml` why some of them must. Of planted mistakes, `published/planted-mistakes.json` has who
catches which, and `test_planted_mistakes.py` asks for every place of the sources to be in it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from unforgotten.verification.mutation.operators import Mutant, all_mutants, mutated_files, shuffled
from unforgotten.verification.mutation.planted_mistakes import planted_mistakes
from unforgotten.verification.mutation.report import DEAD, Run, publish
from unforgotten.verification.mutation.seen_by import (
    LIBRARIES,
    REGISTRY,
    Seen,
    Worker,
    copy_of_tree,
    near_tests,
    what_tests_see,
)
from unforgotten.verification.mutation.session import (
    Session,
    Verdict,
    false_killers,
    judged,
    meet,
    meet_all,
    meet_near,
    mutant_job,
)

LEAST_SAMPLE = 400


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository")
    parser.add_argument("--dir", type=Path, default=Path("runs/mutants"), help="copies and session")
    parser.add_argument("--publish", type=Path, default=Path("verification/published"))
    parser.add_argument("--seed", type=int, default=0, help="of the order; any prefix is a sample")
    parser.add_argument("--sample", type=int, default=LEAST_SAMPLE, help="mutants; 0: all of them")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after them")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--budget", type=float, default=600, help="CPU seconds of tests a mutant")
    parser.add_argument("--planted", action="store_true", help="planted_mistakes.py's, all of them")
    parser.add_argument("--near", action="store_true", help="meet the tests that import the module")
    parser.add_argument("--again", nargs="*", metavar="TESTS", help="survivors meet these test files")
    asked = parser.parse_args(words)
    if asked.planted:
        asked.sample = 0
    return asked


def wanted(seed: int, size: int, mutants: Sequence[Mutant], session: Session) -> list[Mutant]:
    """Choose the sample: the first `size` mutants of the order, not counting those whose change changes nothing."""
    empty = {job for job, verdict in session.verdicts().items() if verdict.outcome == "nothing"}
    order = shuffled(mutants, seed)
    if not size:
        return order
    chosen: list[Mutant] = []
    real = 0
    for mutant in order:
        if real == size:
            break
        real += mutant.id not in empty
        chosen.append(mutant)
    return chosen


def main(words: Sequence[str] | None = None) -> int:
    """Run as many of the sample as the time allows and publish what is known; 0 if no mutant is alive."""
    if importlib.util.find_spec("cosmic_ray") is None:
        sys.exit("mutation testing needs cosmic-ray: pip install 'cosmic-ray>=8.4'")
    asked = arguments(words)
    folder = asked.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tree, revision = copy_of_tree(asked.root, folder)
    every = planted_mistakes if asked.planted else all_mutants
    mutants = every(tree, mutated_files(tree))
    name = "planted-mistakes" if asked.planted else "mutants"
    with ExitStack() as stack:
        session = Session(folder / f"{name}.sqlite")
        stack.callback(session.close)
        workers = []
        for number in range(asked.jobs):
            worker = Worker(tree, folder / f"worker-{number}.log", LIBRARIES)
            stack.callback(worker.close)
            workers.append(worker)
        deadline = time.monotonic() + 60 * asked.minutes
        red: tuple[str, ...] = ()
        if asked.near:
            _near(asked, mutants, session, workers, tree, revision)
        elif asked.again is None:
            seen = what_tests_see(tree, workers[0], mutated_files(tree), folder / f"map-{tree.name}.json")
            red = seen.red
            _first(asked, mutants, session, seen, workers, tree, revision, deadline)
        else:
            _again(asked, mutants, session, workers, tree, revision)
        verdicts = session.verdicts()
        sample = [(m, verdicts[m.id]) for m in wanted(asked.seed, asked.sample, mutants, session) if m.id in verdicts]
    found = publish(Run(revision, asked.seed, len(mutants), sample, red), asked.publish, name)
    print(
        f"{found['met']} mutants met: {found['killed']} killed, {found['equivalent']} equivalent, "
        f"{found['alive']} alive; score {found['score']:.1%}"
    )
    return int(found["alive"] > 0)


def _say(mutant: Mutant, verdict: Verdict) -> None:
    if sys.stderr.isatty() or verdict.outcome not in DEAD:
        print(
            f"{verdict.outcome:9} {mutant.path}:{verdict.line}  {verdict.before}  →  {verdict.after}",
            file=sys.stderr,
            flush=True,
        )


def _first(
    asked: argparse.Namespace,
    mutants: Sequence[Mutant],
    session: Session,
    seen: Seen,
    workers: Sequence[Worker],
    tree: Path,
    revision: str,
    deadline: float,
) -> None:
    """Meet the sample, as far as time allows; then check that the killers do not kill the innocent."""
    banned: frozenset[str] = frozenset()

    def judge(mutant: Mutant, worker: Worker) -> Verdict:
        return replace(meet(mutant, tree, seen, worker, budget=asked.budget, banned=banned), revision=revision)

    def done(mutant: Mutant, verdict: Verdict) -> bool:
        session.add([mutant], tree)
        session.set(mutant, verdict)
        _say(mutant, verdict)
        return time.monotonic() > deadline

    while time.monotonic() <= deadline:
        known = session.verdicts()
        sample = wanted(asked.seed, asked.sample, mutants, session)
        rest = [m for m in sample if m.id not in known]
        meet_all(rest, judge, workers, done)
        if not rest:
            break
    known = session.verdicts()
    sample = [m for m in wanted(asked.seed, asked.sample, mutants, session) if m.id in known]
    banned = false_killers((known[m.id] for m in sample), seen, workers[0])
    meet_all([m for m in sample if known[m.id].killer in banned], judge, workers, done)


def _near(
    asked: argparse.Namespace,
    mutants: Sequence[Mutant],
    session: Session,
    workers: Sequence[Worker],
    tree: Path,
    revision: str,
) -> None:
    """Let mutants without a verdict meet the test files that import what is mutated."""
    known = session.verdicts()
    rest = [m for m in wanted(asked.seed, asked.sample, mutants, session) if m.id not in known]
    files = sorted({f for path in {m.path for m in rest} for f in near_tests(tree, path)})
    if files:
        _refuse_failing(workers[0], files)

    def judge(mutant: Mutant, worker: Worker) -> Verdict:
        return replace(meet_near(mutant, tree, worker), revision=revision)

    def done(mutant: Mutant, verdict: Verdict) -> bool:
        session.add([mutant], tree)
        session.set(mutant, verdict)
        _say(mutant, verdict)
        return False

    meet_all(rest, judge, workers, done)


def _concerned(tests: Sequence[str], mutant: Mutant, tree: Path) -> list[str]:
    """Pick the tests whose file imports the mutated module, or knows every claim by name; all of them if none does."""
    near = (*near_tests(tree, mutant.path), *REGISTRY)
    return [t for t in tests if t.split("::")[0] in near or t.startswith(near)] or list(tests)


def _refuse_failing(worker: Worker, files: Sequence[str]) -> None:
    clean = worker(tests=[], files=list(files), stop=False)
    if clean["outcome"] != 0:
        sys.exit(f"{', '.join(files)} must pass without a mutant, got {clean['failed']}")


def _again(
    asked: argparse.Namespace,
    mutants: Sequence[Mutant],
    session: Session,
    workers: Sequence[Worker],
    tree: Path,
    revision: str,
) -> None:
    """Let the survivors of the session meet every test of the named files."""
    _refuse_failing(workers[0], asked.again)
    known = session.verdicts()

    def judge(mutant: Mutant, worker: Worker) -> Verdict:
        old = known[mutant.id]
        told = worker(tests=[], files=_concerned(asked.again, mutant, tree), **mutant_job(mutant, tree))
        outcome, killer, how = judged(told)
        if outcome not in DEAD:
            return old
        return replace(old, outcome=outcome, killer=killer, how=how, revision=revision, once_survived=True)

    def done(mutant: Mutant, verdict: Verdict) -> bool:
        session.set(mutant, verdict)
        _say(mutant, verdict)
        return False

    alive = [m for m in mutants if m.id in known and known[m.id].outcome in ("survived", "unseen")]
    meet_all(alive, judge, workers, done)


if __name__ == "__main__":
    sys.exit(main())
