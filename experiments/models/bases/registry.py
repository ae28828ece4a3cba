"""The base models by name, found in the modules beside this one."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.experiments.declared import by_name, declared
from unforgotten.experiments.models.bases.base import Base
from unforgotten.experiments.models.bases.own import load_own
from unforgotten.experiments.own import named


def find_bases() -> Mapping[str, Base]:
    """Return the bases that the modules of this package declare in `BASES`."""
    return by_name(declared("unforgotten.experiments.models.bases", "BASES"))


BASES: Mapping[str, Base] = find_bases()


def base_named(name: str) -> Base:
    """Return the base of a name, or of a reference to one's own.

    Raises:
        ValueError: there is none, see `load_own` for a reference.
    """
    return named(name, BASES, load_own, "base.kind must be one of", "")
