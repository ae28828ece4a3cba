"""The examples with which modules open say what the code does."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
ROOTS = ("theory", "verification")
EXAMPLES = sorted(
    "unforgotten." + ".".join(path.relative_to(TREE).with_suffix("").parts)
    for root in ROOTS
    for path in (TREE / root).rglob("*.py")
    if not path.name.startswith("test_") and "\n>>> " in path.read_text("utf-8")
)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 30


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_say_what_the_code_does(name: str) -> None:
    """In the namespace of the module, as a reader of it sees them."""
    module = importlib.import_module(name)
    example = doctest.DocTestParser().get_doctest(module.__doc__ or "", dict(vars(module)), name, module.__file__, 0)
    assert example.examples
    assert doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(example).failed == 0
