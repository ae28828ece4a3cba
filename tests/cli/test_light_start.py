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
THEORY = {
    "formats": {"numpy", "unforgotten.theory.formats.names"},
    "claims": {"numpy", "unforgotten.theory.laws.densities", "unforgotten.theory.models.lattice"},
}
"""What a listing needs of the theory; the others need nothing of it."""
COMMANDS = (
    "run",
    "audit",
    "judge",
    "compare",
    "bound",
    "report",
    "formats",
    "methods",
    "models",
    "metrics",
    "claims",
    "verify",
)


def loaded(*arguments: str) -> set[str]:
    """Names of the modules that a command had loaded when it ended."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout
    return set(done.stderr.split())


@pytest.mark.parametrize("listing", ["formats", "methods", "models", "metrics", "claims"])
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_a_listing_loads_nothing_heavy(listing: str, more: list[str]) -> None:
    modules = loaded(listing, *more)
    assert not HEAVY & modules
    # All claims are all of the theory, and scipy's parts stay away until a formula is computed.
    every = set().union(*THEORY.values())
    assert THEORY.get(listing, set()) <= modules
    if listing not in THEORY:
        assert not every & modules


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    modules = loaded(*([command] if command else []), "--help")
    assert "unforgotten.cli" in modules
    assert not (HEAVY | {"numpy", "unforgotten.theory"}) & modules


def test_names_of_formats_load_no_scipy() -> None:
    """Not even its root: what lists formats needs none of the laws."""
    code = "import sys, unforgotten.theory.formats.names; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_packages_of_theory_and_verification_load_nothing_heavy() -> None:
    """A package says what lives in it: who imports one of its modules pays for that module alone."""
    roots = ("unforgotten.theory", "unforgotten.verification")
    code = (
        "import importlib, pkgutil, sys\n"
        "def load(name):\n"
        "    package = importlib.import_module(name)\n"
        "    for found in pkgutil.iter_modules(package.__path__, name + '.'):\n"
        "        if found.ispkg:\n"
        "            load(found.name)\n"
        f"for root in {roots!r}:\n"
        "    load(root)\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert {"unforgotten.theory.laws", "unforgotten.verification.mutation"} <= modules
    assert not (HEAVY | {"scipy"}) & modules
