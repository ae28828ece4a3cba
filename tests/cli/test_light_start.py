"""What only lists or explains starts light: which packages a command loads, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from unforgotten.cli import main
sys.argv = ["unforgotten", *sys.argv[1:]]
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "sklearn",
    "rouge_score",
    "numba",
    "llvmlite",
    "pyarrow",
    "jinja2",
    "matplotlib",
    "pandas",
    "jax",
    "sympy",
    "z3",
    "hypothesis",
    "pytest",
    "huggingface_hub",
    "rich.progress",
    "unforgotten.audit",
    "scipy.special",
    "scipy.linalg",
    "scipy.optimize",
    "scipy.stats",
    "scipy.sparse",
}
NEEDS_THEORY = {"formats", "claims"}
COMMANDS = ("run", "audit", "bound", "report", "formats", "methods", "metrics", "claims", "verify")


def loaded(*arguments: str) -> set[str]:
    """Names of the modules that a command had loaded when it ended."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout
    return set(done.stderr.split())


@pytest.mark.parametrize("listing", ["formats", "methods", "metrics", "claims"])
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_a_listing_loads_nothing_heavy(listing: str, more: list[str]) -> None:
    modules = loaded(listing, *more)
    assert not HEAVY & modules
    # Theory is numpy and formulas: it comes whole, and scipy's parts stay away until a formula is computed.
    needed = {"numpy", "unforgotten.theory.laws.densities", "unforgotten.theory.models.lattice"}
    assert needed & modules == (needed if listing in NEEDS_THEORY else set())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    modules = loaded(*([command] if command else []), "--help")
    assert "unforgotten.cli" in modules
    assert not (HEAVY | {"numpy", "unforgotten.theory"}) & modules
