"""Which tests can see a mutant: a copy of the tree, and what every test of it runs and takes.

Takes a repository; gives a copy of its last commit, a worker that runs tests there, and `Seen`: which tests run which
line, and how long each takes.

>>> module_name("theory/laws/flips.py")
'unforgotten.theory.laws.flips'
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unforgotten.records.files import write_text
from unforgotten.verification.mutation.operators import Mutant

LISTED = "tests/reports/test_theory_document.py::test_the_functions_that_are_listed_are_the_registry"
TARGETS = ("verification", "tests/experiments/quantizers/test_quantizers.py", LISTED)
"""The suite, the test that holds the torch path equal to the numpy reference, and one that knows every claim by name."""

REGISTRY = ("verification/test_claims.py", LISTED)
"""See a decorator that registers a claim without running a line of what it decorates."""

LIBRARIES = (
    "numpy",
    "scipy.special",
    "scipy.stats",
    "scipy.optimize",
    "scipy.integrate",
    "ml_dtypes",
    "hypothesis.extra.numpy",
    "hypothesis.stateful",
    "sympy",
    "z3",
    "torch",
    "gguf",
    "sklearn.metrics",
)
"""Loaded once, before any fork. Not jax: it starts threads, which do not survive a fork."""

MAP_EXAMPLES = 20
"""Random examples of a property while lines are traced: which lines it runs, not whether it holds."""


@dataclass(frozen=True)
class Seen:
    """What the tests of one revision run.

    Attributes:
        lines: path -> line -> the tests that run it; `collecting FILE`, or nothing, where it runs on import.
        seconds: CPU seconds of every test, at MAP_EXAMPLES examples.
        bodies: path -> function -> first and last line.
        importers: path -> the mutated files that import it.
        red: the tests that fail without a mutant.
    """

    lines: Mapping[str, Mapping[int, frozenset[str]]]
    seconds: Mapping[str, float]
    bodies: Mapping[str, Mapping[str, tuple[int, int]]]
    importers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    red: tuple[str, ...] = ()

    @cached_property
    def by_file(self) -> Mapping[str, frozenset[str]]:
        """Path -> the tests that run any line of it."""
        return {path: frozenset().union(*lines.values()) & self.seconds.keys() for path, lines in self.lines.items()}

    def tests(self, mutant: Mutant) -> list[str]:
        """List the tests that can see the mutant, those that run its line first, the fastest of them first.

        What runs while a module is imported is seen by every test that runs anything of the module or of one that
        imports it, and a decorator by the tests of the registry too.
        """
        near = self._running(mutant.path, range(mutant.start[0], mutant.end[0] + 1))
        first, last = self._body(mutant)
        wide = self._running(mutant.path, range(first, last + 1))
        if not first or any(t == "" or t.startswith("collecting ") for t in near | wide):
            for path in (mutant.path, *self.importers.get(mutant.path, ())):
                wide |= self.by_file.get(path, frozenset())
            wide |= {t for t in self.seconds if t.startswith(REGISTRY)}
        near &= self.seconds.keys()
        return [*self._fast(mutant, near), *self._fast(mutant, (wide & self.seconds.keys()) - near)]

    def _running(self, path: str, lines: Iterable[int]) -> frozenset[str]:
        of = self.lines.get(path, {})
        return frozenset().union(*(of.get(line, frozenset()) for line in lines))

    def _body(self, mutant: Mutant) -> tuple[int, int]:
        """Return the lines of the innermost function around the mutant, without its `def`; (0, 0) if there is none."""
        around = [body for body in self.bodies.get(mutant.path, {}).values() if body[0] <= mutant.start[0] <= body[1]]
        return max(around, default=(0, 0))

    def _fast(self, mutant: Mutant, tests: Iterable[str]) -> list[str]:
        named = f"test_{mutant.function}__"
        return sorted(tests, key=lambda t: (self.seconds[t] * (0.2 if named in t else 1.0), t))


def function_bodies(source: str) -> dict[str, tuple[int, int]]:
    """Return every function's first and last line of statements, by name and line, for names repeat."""
    return {
        f"{node.name}:{node.lineno}": (node.body[0].lineno, node.end_lineno or node.lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }


def git(root: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True).stdout


def copy_of_tree(root: Path, folder: Path) -> tuple[Path, str]:
    """Unpack the last commit of the repository at `root` under `folder`; return the copy and its revision.

    What is not committed is not tested. An unfinished copy has no mark, and is unpacked again.
    """
    revision = git(root, "rev-parse", "HEAD").decode().strip()
    tree = folder / f"tree-{revision[:12]}"
    if not (tree / ".complete").exists():
        with tarfile.open(fileobj=io.BytesIO(git(root, "archive", "HEAD"))) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
            archive.extractall(tree)
        (tree / ".complete").touch()
    return tree, revision


class Worker:
    """The process that runs tests, `worker.py`, with `unforgotten` mapped to the copy of the tree."""

    def __init__(self, tree: Path, log: Path, libraries: Sequence[str] = LIBRARIES) -> None:
        self.log = log
        environment = os.environ | {
            "PYTHONPATH": str(tree / "typings"),  # links that map the root folders, before the editable finder
            "HYPOTHESIS_PROFILE": "ci",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(tree / ".hypothesis"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(tree / "verification" / "mutation" / "worker.py"), *libraries],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tree,
            env=environment,
            text=True,
        )

    def __call__(self, **job: Any) -> dict[str, Any]:
        """Run one job; how it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job | {"log": str(self.log)}) + "\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"worker.py ended with {self.process.wait()}; see {self.log}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        assert self.process.stdin is not None
        with self.process:
            self.process.stdin.close()


def what_tests_see(tree: Path, worker: Worker, files: Iterable[str], to: Path) -> Seen:
    """Run the whole suite once, unmutated and traced; remembered in `to`.

    A test that fails without a mutant would seem to kill every one: it is left out, and named in `red`.

    Raises:
        RuntimeError: the suite does not run to its end.
    """
    if not to.exists():
        raw = to.with_suffix(".lines.json")
        folders = sorted({str(tree / Path(f).parent) for f in files})
        run = worker(
            tests=[],
            files=list(TARGETS),
            stop=False,
            examples=MAP_EXAMPLES,
            measure={"folders": folders, "to": str(raw)},
        )
        if run["outcome"] not in (0, 1):
            raise RuntimeError(f"the suite must run to its end, got {run['outcome']} at {run['last']}")
        found = {
            "seconds": {t: s for t, s in run["seconds"].items() if t not in run["failed"]},
            "lines": json.loads(raw.read_text()),
            "red": sorted(run["failed"]),
        }
        write_text(to, json.dumps(found))
    return read_map(tree, files, json.loads(to.read_text()))


def read_map(tree: Path, files: Iterable[str], found: Mapping[str, Any]) -> Seen:
    """Read the map from what the traced run wrote: absolute paths, and lines as the keys of JSON."""
    lines = {
        str(Path(file).relative_to(tree.resolve())): {int(line): frozenset(tests) for line, tests in of.items()}
        for file, of in found["lines"].items()
    }
    sources = {f: (tree / f).read_text("utf-8") for f in files}
    bodies = {f: function_bodies(source) for f, source in sources.items()}
    return Seen(lines, found["seconds"], bodies, importers_of(sources), tuple(found["red"]))


def near_tests(tree: Path, path: str) -> list[str]:
    """List the test files that import the mutated module by name: what a new module can be met with at once."""
    module = module_name(path)
    package, _, name = module.rpartition(".")
    files = [
        *sorted((tree / "verification").rglob("test_*.py")),
        tree / "tests/experiments/quantizers/test_quantizers.py",
    ]
    asked = re.compile(rf"from {re.escape(module)} import|from {re.escape(package)} import.*\b{name}\b")
    return [str(f.relative_to(tree)) for f in files if asked.search(f.read_text("utf-8"))]


def importers_of(sources: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Map each path to the paths whose source imports from it."""
    return {
        path: frozenset(
            other
            for other, source in sources.items()
            if f"from {module_name(path)} import " in source
            or f"import {module_name(path).rpartition('.')[2]}\n" in source
        )
        for path in sources
    }


def module_name(path: str) -> str:
    return "unforgotten." + path.removesuffix(".py").replace("/", ".")
