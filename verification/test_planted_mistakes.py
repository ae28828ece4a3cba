"""The mistakes that are easiest to make are planted one by one, and profile ci fails each time."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import unforgotten.theory
from unforgotten.verification.mutation.operators import Mutant, changed_lines, mutated_files, spliced
from unforgotten.verification.mutation.planted_mistakes import KINDS, kind_of, planted_in, planted_mistakes
from unforgotten.verification.mutation.report import DEAD, equivalents
from unforgotten.verification.mutation.seen_by import Worker
from unforgotten.verification.mutation.session import judged, mutant_job

PUBLISHED = Path(__file__).resolve().parent / "published"
TREE = PUBLISHED.parents[1]
RENEW = "run `make mutants MUTANTS=--planted`, which finds the test that catches it; then kill what survives, or argue"
LIBRARIES = ("numpy", "scipy.special", "scipy.stats", "hypothesis.extra.numpy")
EACH = 3
"""Mistakes of a kind that are planted in profile ci: the quickest to be caught, of different modules; nightly plants all."""

needs_the_repository = pytest.mark.skipif(
    not (TREE / "typings/unforgotten/theory").exists(), reason="plants in a checkout of the repository"
)


@functools.cache
def published() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((PUBLISHED / "planted-mistakes.json").read_text("utf-8"))["mutants"]
    return found


@functools.cache
def present() -> dict[tuple[str, str | None, str, str], Mutant]:
    """The mistakes that could be made today, by file, function, and the two texts of the line."""
    found = {}
    sources = {path: (TREE / path).read_text("utf-8") for path in mutated_files(TREE)}
    for mutant in planted_mistakes(TREE, sources):
        source = sources[mutant.path]
        _, before, after = changed_lines(source, spliced(mutant, source))
        found[mutant.path, mutant.function, before, after] = mutant
    return found


def place(entry: dict[str, Any]) -> tuple[str, str | None, str, str]:
    return entry["id"].split(":")[0], entry["function"], entry["before"], entry["after"]


def caught() -> list[dict[str, Any]]:
    return [m for m in published() if m["outcome"] in DEAD and place(m) in present()]


def representatives() -> list[dict[str, Any]]:
    """Of every kind the quickest of EACH modules of the theory; in profile nightly all that a test is known to catch."""
    named = [m for m in caught() if m["killer"]]
    if os.environ.get("HYPOTHESIS_PROFILE") == "nightly":
        return named
    chosen: list[dict[str, Any]] = []
    for kind in KINDS:
        of: dict[str, dict[str, Any]] = {}
        for m in sorted(named, key=lambda m: ("::" not in m["killer"], m["cpu"], m["id"])):
            if kind_of(m["id"]) == kind and m["id"].startswith("theory/"):
                of.setdefault(place(m)[0], m)
        chosen += list(of.values())[:EACH]
    return chosen


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    started = Worker(TREE, tmp_path_factory.mktemp("planted") / "log", LIBRARIES)
    yield started
    started.close()


def meeting(killer: str) -> dict[str, list[str]]:
    """What the worker is to run: a test, or a file of tests, which fails as a whole where it cannot be imported."""
    return {"tests": [killer], "files": []} if "::" in killer else {"tests": [], "files": [killer]}


@pytest.fixture(scope="module")
def innocent(worker: Worker) -> frozenset[str]:
    """The tests that are to catch something and pass where nothing is planted; files too, for what keeps them out."""
    killers = sorted({m["killer"] for m in representatives()})
    told = worker(tests=[k for k in killers if "::" in k], stop=False)
    files = frozenset(k for k in killers if "::" not in k and not worker(**meeting(k), stop=False)["failed"])
    return files | frozenset(told["seconds"]) - frozenset(told["failed"])


@needs_the_repository
@pytest.mark.parametrize(
    "entry", representatives() if (TREE / "typings").exists() else [], ids=lambda m: m["id"].rpartition(":")[0]
)
def test_a_planted_mistake_is_caught(entry: dict[str, Any], worker: Worker, innocent: frozenset[str]) -> None:
    """The test that caught it passes without it and fails with it."""
    mutant = present()[place(entry)]
    told = worker(**meeting(entry["killer"]), **mutant_job(mutant, TREE))
    assert judged(told)[0] in DEAD, told
    assert entry["killer"] in innocent, RENEW


@needs_the_repository
def test_every_mistake_that_was_met_is_caught_or_argued() -> None:
    """Of the places that are there today."""
    argued = equivalents(PUBLISHED / "equivalent-mutants.toml")
    met = [m for m in published() if place(m) in present()]
    alive = [place(m) for m in met if m["outcome"] not in DEAD and place(m) not in argued]
    assert len(met) > 100
    assert not alive, "no test catches them"


@needs_the_repository
def test_every_place_was_met() -> None:
    """A new `<` needs a test that fails where it reads `<=`, or a reason why none can."""
    known = {place(m) for m in published()}
    missing = [at for at in present() if at not in known]
    assert not missing, RENEW


@needs_the_repository
def test_every_killer_is_there() -> None:
    """A killer is a test, or a file of tests that cannot be imported with the mistake in place."""
    gone = []
    for killer in sorted({m["killer"] for m in published() if m["killer"]}):
        file, _, test = killer.partition("::")
        source = (TREE / file).read_text("utf-8") if (TREE / file).exists() else ""
        if not source or (test and f"def {test.partition('[')[0]}(" not in source):
            gone.append(killer)
    assert not gone, RENEW


@needs_the_repository
def test_every_kind_is_caught_somewhere() -> None:
    assert {kind_of(m["id"]) for m in caught()} == set(KINDS)
    assert {kind_of(m["id"]) for m in representatives()} == set(KINDS)


SOURCE = '''"""ü < 1, and 2 * x."""

def f(x: int, fmt: F) -> float:
    """A docstring: rint(x)."""
    if 0 < x < 1 or x > 2:
        raise ValueError(f"got {2 * x}")
    return np.rint(x / 2) + 2 * min(x, len(fmt.levels) - 1)


def adamw_limit_ratio() -> float:
    return 7.27
'''


def afters(source: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for mutant in planted_in("f.py", source):
        found[kind_of(mutant.id)].append(changed_lines(source, spliced(mutant, source))[2])
    return found


def test_planted_in__finds_every_place_and_no_other() -> None:
    """By hand. An f-string's text, a docstring and `>` are left alone."""
    rest = "np.rint(x / 2) + 2 * min(x, len(fmt.levels) - 1)"
    assert afters(SOURCE) == {
        "strict": ["if (0 <= x < 1) or x > 2:", "if (0 < x <= 1) or x > 2:"],
        "half-up": ["return " + rest.replace("np.rint(x / 2)", "(np.floor(x / 2 + 0.5))")],
        "factor-two": [
            "return np.rint((x)) + 2 * min(x, len(fmt.levels) - 1)",
            "return np.rint(x / 2) + (min(x, len(fmt.levels) - 1))",
        ],
        "one-level": ["return " + rest.replace("len(fmt.levels) - 1", f"(len(fmt.levels) - {k})") for k in (0, 2)],
        "ratio-one": ["return 1.0"],
        "swapped": ["return np.rint(x / 2) + 2 * (max(x, len(fmt.levels) - 1))"],
    }


@pytest.mark.parametrize(
    ("before", "kind", "after"),
    [
        ("y = np.where(fmt.even_labels[a], a, b)", "half-up", ["y = (b)"]),
        ("y = q.clamp(min=0)", "swapped", ["y = (q.clamp(max=0))"]),
        ("y = x.max(axis=1)", "swapped", ["y = (x.min(axis=1))"]),
        ("y = fmt.levels[-1]", "one-level", ["y = (fmt.levels[-2])"]),
        ("y = ratios(t, b)", "ratio-one", ["y = (np.ones(t.shape))"]),
        ("y = lr * adamw_ratio_upper_bound(t)", "ratio-one", ["y = lr * (1.0)"]),
        ("y = t - 1", "one-level", []),
        ("y = 2**k - x", "factor-two", []),
        ("y = a <= b", "strict", []),
    ],
)
def test_planted_in__changes_one_place(before: str, kind: str, after: Sequence[str]) -> None:
    assert afters(before + "\n")[kind] == after


def test_planted_in__is_found_in_the_theory() -> None:
    """The sources that are meant are those that are installed."""
    assert unforgotten.theory.__file__ is not None
    root = Path(unforgotten.theory.__file__).resolve().parents[1]
    kinds = {kind_of(m.id) for m in planted_mistakes(root, ["theory/geometry/adamw.py", "theory/formats/rounding.py"])}
    assert {"strict", "half-up", "ratio-one", "one-level"} <= kinds
