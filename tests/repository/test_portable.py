"""No test asks a clock: what one says is of the machine and of its other jobs. How fast anything is, `make bench` says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from unforgotten.verification.contracts.search import EXAMPLES

ROOT = Path(__file__).parents[2]
CLOCKS = {
    "time",
    "time_ns",
    "perf_counter",
    "perf_counter_ns",
    "monotonic",
    "monotonic_ns",
    "process_time",
    "process_time_ns",
    "thread_time",
    "clock_gettime",
    "getrusage",
    "times",
    "default_timer",
    "timeit",
    "now",
    "utcnow",
    "today",
    "sleep",
}
MODULES = {"time", "resource", "os", "timeit", "datetime", "date"}
LEAST_NET = 600  # seconds that a process may hang before a test ends it: many times what any needs anywhere
SOURCES = sorted(
    path
    for folder in ("tests", "verification")
    for path in (ROOT / folder).rglob("*.py")
    if path.name.startswith(("test_", "conftest"))
)


def clocks(tree: ast.AST) -> Iterator[str]:
    """The calls and imports by which a module could learn the time, or wait for it."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module) | ast.Attribute(attr=module), attr=name) if (
                module in MODULES and name in CLOCKS
            ):
                yield f"line {node.lineno}: {module}.{name}"
            case ast.ImportFrom(module=module, names=names) if module in MODULES:
                yield from (f"line {node.lineno}: {a.name}" for a in names if a.name in CLOCKS)


def nets(tree: ast.AST) -> Iterator[str]:
    """Timeouts under what may hang that are no named constant, or a short one."""
    seconds = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "HANG_SECONDS"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "timeout":
            names = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
            if names != {"HANG_SECONDS"} or seconds["HANG_SECONDS"] < LEAST_NET:
                yield f"line {node.value.lineno}: timeout={ast.unparse(node.value)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_test_asks_a_clock_or_hangs_by_a_short_net(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [*clocks(tree), *nets(tree)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from time import perf_counter\nspent = perf_counter()", 1),
        ("import time\nassert time.monotonic() - start < 1", 1),
        ("import resource\nresource.getrusage(0)", 1),
        ("import time\ntime.sleep(1)", 1),
        ("import datetime\ndatetime.datetime.now()", 1),
        ("from datetime import datetime\ndatetime.now()", 1),
        ("HANG_SECONDS = 60\nrun(timeout=HANG_SECONDS)", 1),
        ("run(timeout=60)", 1),
        ("HANG_SECONDS = 600\nrun(timeout=1000 * HANG_SECONDS)", 0),
        ("monkeypatch.setattr(time, 'perf_counter', lambda: 0)", 0),
    ],
)
def test_the_walk_finds_what_it_looks_for(source: str, found: int) -> None:
    tree = ast.parse(source)
    assert len([*clocks(tree), *nets(tree)]) == found


def test_no_profile_of_hypothesis_has_a_deadline() -> None:
    assert settings().deadline is None
    assert all(settings.get_profile(name).deadline is None for name in (*EXAMPLES, "seeds"))
