"""Mutation testing on a repository of three functions: who kills whom, what is left out, and that a killed run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="mutation testing needs cosmic-ray")

from unforgotten.verification.mutation import mutants, worker
from unforgotten.verification.mutation.operators import (
    Mutant,
    all_mutants,
    changed_lines,
    mutated_source,
    shuffled,
    telling,
)
from unforgotten.verification.mutation.report import lower_bound
from unforgotten.verification.mutation.seen_by import LISTED, Seen, function_bodies, importers_of
from unforgotten.verification.mutation.session import Session, Verdict, affordable, judged

QUANTILE_ROUNDINGS = 16  # 8 ulp: the inverse beta is iterated until its digits stand (scipy, Boost ibeta_inv)
TINY = '''"""Three functions."""

from __future__ import annotations


def clipped(x: int | None, top: int) -> int | None:
    if x is None:
        return None
    return top if x > top else x


def twice(x: int) -> int:
    return 2 * x


def never(x: int) -> int:
    return x + 1
'''
TESTS = """from unforgotten.theory.tiny import clipped, twice


def test_clipped() -> None:
    assert clipped(5, 3) == 3
    assert clipped(1, 3) == 1
    assert clipped(None, 3) is None


def test_twice() -> None:
    assert twice(2) == 4
"""
PROFILE = """from hypothesis import settings

settings.register_profile("ci", max_examples=5, derandomize=True, deadline=None)
settings.load_profile("ci")
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository laid out as ours."""
    root = tmp_path / "repository"
    files = {
        "theory/__init__.py": "",
        "theory/tiny.py": TINY,
        "experiments/__init__.py": "",
        "experiments/quantizers/torch_path.py": "",
        "experiments/quantizers/registry.py": "",
        "verification/__init__.py": "",
        "verification/conftest.py": PROFILE,
        "verification/test_tiny.py": TESTS,
        "verification/mutation/worker.py": Path(worker.__file__).read_text(),
        "tests/experiments/quantizers/test_quantizers.py": "def test_nothing() -> None:\n    pass\n",
        "tests/reports/test_theory_document.py": f"def {LISTED.rpartition('::')[2]}() -> None:\n    pass\n",
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\n',
        "typings/unforgotten/__init__.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("theory", "experiments", "verification"):
        (root / "typings/unforgotten" / name).symlink_to(f"../../{name}")
    commit(root)
    return root


def commit(root: Path) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "tiny"]):
        subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)


def words(root: Path, folder: Path) -> list[str]:
    return ["--root", str(root), "--dir", str(folder), "--publish", str(folder / "published"), "--sample", "0"]


@pytest.fixture(autouse=True)
def few_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unforgotten.verification.mutation.mutants.LIBRARIES", ("hypothesis",))


def test_verdicts_are_right_and_new_tests_kill_survivors(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    assert mutants.main(words(repository, folder)) == 1
    found = json.loads((folder / "published/mutants.json").read_text())
    by_line = {(m["before"], m["after"]): m for m in found["mutants"]}
    assert by_line["return top if x > top else x", "return top if x < top else x"]["killer"] == (
        "verification/test_tiny.py::test_clipped"
    )
    assert by_line["return 2 * x", "return 2 + x"]["outcome"] == "survived"  # 2 + 2 is 4
    assert by_line["return 2 * x", "return 2 - x"]["outcome"] == "killed"
    assert {m["outcome"] for m in found["mutants"] if m["function"] == "never"} == {"unseen"}
    assert found["alive"] > 0
    assert found["score"] < 1

    (repository / "verification/test_new.py").write_text(
        "from unforgotten.theory.tiny import clipped, never, twice\n\n\n"
        "def test_new() -> None:\n    assert twice(3) == 6\n    assert twice(0.5) == 1\n"
        "    assert never(1) == 2\n    assert never(5) == 6\n    assert never(0.5) == 1.5\n"
    )
    commit(repository)
    mutants.main([*words(repository, folder), "--again", "verification/test_new.py"])
    again = json.loads((folder / "published/mutants.json").read_text())
    assert again["met"] == found["met"]
    assert again["score_before_new_tests"] == pytest.approx(found["score"])
    # x >= top returns the same number: equivalent, and only a reason takes it out of the score
    alive = [m for m in again["mutants"] if m["outcome"] in ("survived", "unseen")]
    assert [(m["before"], m["after"]) for m in alive] == [
        ("return top if x > top else x", "return top if x >= top else x")
    ]
    (folder / "published/equivalent-mutants.toml").write_text(
        "[[equivalent]]\npath = 'theory/tiny.py'\nfunction = 'clipped'\n"
        "before = 'return top if x > top else x'\nafter = 'return top if x >= top else x'\n"
        "reason = 'where x is top, top and x are one number'\n"
    )
    assert mutants.main([*words(repository, folder), "--again", "verification/test_new.py"]) == 0
    page = (folder / "published/mutants-survivors.md").read_text()
    assert "where x is top" in page
    assert "## Alive: 0" in page


def test_a_killed_run_goes_on(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    code = (
        "import os, signal, sys; from unforgotten.verification.mutation import mutants; "
        "mutants.LIBRARIES = ('hypothesis',); "
        "mutants._say = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "  # at the first verdict
        "mutants.main(sys.argv[1:])"
    )
    command = [sys.executable, "-P", "-c", code, *words(repository, folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    session = folder / "mutants.sqlite"
    before = known(session)
    assert before
    mutants.main(words(repository, folder))
    after = known(session)
    assert {job: after[job] for job in before} == before
    assert (repository / "theory/tiny.py").read_text() == TINY


def known(session: Path) -> dict[str, Verdict]:
    opened = Session(session)
    try:
        return opened.verdicts()
    finally:
        opened.close()


def test_operators_become_their_own_kind_only() -> None:
    assert telling("core/ReplaceBinaryOperator_Mul_Div")
    assert telling("core/ReplaceComparisonOperator_Lt_LtE")
    assert telling("core/ReplaceUnaryOperator_Delete_USub")
    assert telling("core/NumberReplacer")
    assert not telling("core/ReplaceBinaryOperator_Mul_LShift")
    assert not telling("core/ReplaceComparisonOperator_Lt_Is")
    assert not telling("core/ReplaceUnaryOperator_USub_Not")


def test_annotations_are_left_alone_and_every_mutant_compiles(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    found = all_mutants(tmp_path, ["tiny.py"])
    assert found
    for mutant in found:
        changed = mutated_source(mutant, TINY)
        if changed is not None:
            line, before, after = changed_lines(TINY, changed)
            assert not before.startswith("def ")
            assert before != after
            assert TINY.splitlines()[line - 1].strip() == before


def test_the_order_of_some_is_their_order_among_all() -> None:
    some = [Mutant(str(i), "a.py", "core/x", i, (1, 0), (1, 1), None) for i in range(100)]
    order = shuffled(some, 7)
    assert [m for m in order if m in some[:30]] == shuffled(some[:30], 7)
    assert order != shuffled(some, 8)
    assert order != some


def test_a_mutant_meets_the_tests_of_its_line_first_then_of_its_function() -> None:
    bodies = {"a.py": function_bodies("def f(x):\n    y = x\n    if y:\n        y = 2\n    return y\n")}
    lines = {"a.py": {1: frozenset({"collecting t.py"}), 2: frozenset({"slow", "fast"}), 4: frozenset({"slow"})}}
    seen = Seen(lines, {"slow": 9.0, "fast": 0.1, "other": 0.0}, bodies)
    assert seen.tests(Mutant("i", "a.py", "o", 0, (4, 0), (4, 1), "f")) == ["slow", "fast"]
    assert seen.tests(Mutant("i", "a.py", "o", 0, (2, 0), (2, 1), "f")) == ["fast", "slow"]
    at_import = seen.tests(Mutant("i", "a.py", "o", 0, (1, 0), (1, 1), "f"))
    assert at_import == ["fast", "slow"]


def test_what_runs_on_import_meets_the_tests_of_the_importers() -> None:
    sources = {"theory/a.py": "A = 1\n", "theory/b.py": "from unforgotten.theory.a import A\n"}
    lines = {"theory/a.py": {1: frozenset({""})}, "theory/b.py": {9: frozenset({"t"})}}
    seen = Seen(lines, {"t": 1.0, "other": 1.0}, {}, importers_of(sources))
    assert seen.tests(Mutant("i", "theory/a.py", "o", 0, (1, 0), (1, 1), None)) == ["t"]


def test_a_budget_leaves_out_the_slow_end_but_never_all() -> None:
    seen = Seen({}, {"a": 0.1, "b": 0.2, "c": 5.0}, {})
    assert affordable(["a", "b", "c"], seen, 3.0) == ["a", "b"]  # ten times the map's examples
    assert affordable(["c", "a"], seen, 1.0) == ["c"]
    assert affordable([], seen, 1.0) == []


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ({"outcome": 1, "failed": {"t": "assert"}, "last": "t"}, "killed"),
        ({"outcome": 2, "failed": {"t.py": "import"}, "last": None}, "killed"),
        ({"outcome": 4, "failed": {}, "last": None}, "killed"),
        ({"outcome": "timeout", "failed": {}, "last": "t"}, "timeout"),
        ({"outcome": 0, "failed": {}, "last": "t"}, "survived"),
        ({"outcome": 70, "failed": {}, "last": None}, "error"),
        ({"outcome": "signal 9", "failed": {}, "last": "t"}, "error"),
    ],
)
def test_an_ending_is_a_verdict(told: dict[str, object], outcome: str) -> None:
    assert judged(told)[0] == outcome


def test_the_bound_is_exact() -> None:
    """P[all n killed | share p] = p^n = 5 % at the bound; the power multiplies the quantile's error by n."""
    assert abs(lower_bound(50, 50) ** 50 - 0.05) <= 0.05 * 50 * QUANTILE_ROUNDINGS * 2.0**-53
    assert lower_bound(0, 50) == 0
