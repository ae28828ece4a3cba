"""The unlearning methods by name, found in the modules beside this one. Names as in MUSE and the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.experiments.declared import by_name, declared
from unforgotten.experiments.methods.method import Method


def find_methods() -> Mapping[str, Method]:
    """Return the methods that the modules of this package declare in `METHODS`."""
    return by_name(declared("unforgotten.experiments.methods", "METHODS"))


METHODS: Mapping[str, Method] = find_methods()
