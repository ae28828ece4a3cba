"""Which tests draw samples, and so must pass under every seed: those marked `statistical`.

The mark is not written by hand, where it could be forgotten: a test has it if it reaches `rng_for`, or the batches of
`bulk`, by itself or through the functions and fixtures of its module.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SOURCES = frozenset({"rng_for", "batches", "chunks"})
TOO_SLOW = frozenset(
    {
        "test_predict__meets_simulated_training",  # trainings of 200 steps, each to a stated accuracy
        "test_k_quants__are_exact_float32",  # random blocks, but a search in rationals, and no chance
    }
)
EXACT = frozenset({"test_kernel.py", "test_kernel_entries.py", "test_kernel_rules.py"})
"""Files whose tests draw inputs, not samples: the kernel gives what the reference gives, whatever was drawn."""


@cache
def statistical_tests(path: Path) -> frozenset[str]:
    """Return the names of the tests of a file that draw samples and take no minutes."""
    if path.name in EXACT:
        return frozenset()
    return sampling_tests(path.read_text(encoding="utf-8")) - TOO_SLOW


def sampling_tests(source: str) -> frozenset[str]:
    """Return the names of the functions `test_…` of a module from which one of SOURCES can be reached."""
    named = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, named)]
    uses = {node.name: _names(node) for node in nodes}
    return frozenset(n for n in uses if n.startswith("test_") and _reaches(n, uses, set()))


def _names(function: ast.AST) -> frozenset[str]:
    """Return every name that a function mentions: calls, decorators, and parameters, which may be fixtures."""
    nodes = list(ast.walk(function))
    return frozenset(
        {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    )


def _reaches(name: str, uses: Mapping[str, frozenset[str]], seen: set[str]) -> bool:
    if name in SOURCES:
        return True
    if name in seen or name not in uses:
        return False
    seen.add(name)
    return any(_reaches(used, uses, seen) for used in uses[name])
