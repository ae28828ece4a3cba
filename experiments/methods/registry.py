"""The unlearning methods by name, found in the modules beside this one. Names as in MUSE and the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.experiments.declared import by_name, declared
from unforgotten.experiments.methods.method import Method
from unforgotten.experiments.methods.own import load_own
from unforgotten.experiments.own import named, without_variant


def find_methods() -> Mapping[str, Method]:
    """Return the methods that the modules of this package declare in `METHODS`."""
    return by_name(declared("unforgotten.experiments.methods", "METHODS"))


METHODS: Mapping[str, Method] = find_methods()


def method_named(name: str) -> Method:
    """Return the method of a name, or of a reference to one's own, either with a variant or not: `NPO+small-beta` is NPO.

    Raises:
        ValueError: there is none, see `load_own` for a reference.
    """
    return named(without_variant(name), METHODS, load_own, "method must be one of", "method=")
