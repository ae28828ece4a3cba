"""The base models by name, found in the modules beside this one."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.experiments.declared import by_name, declared
from unforgotten.experiments.models.bases.base import Base


def find_bases() -> Mapping[str, Base]:
    """Return the bases that the modules of this package declare in `BASES`."""
    return by_name(declared("unforgotten.experiments.models.bases", "BASES"))


BASES: Mapping[str, Base] = find_bases()
