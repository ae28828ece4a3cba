"""The names that llama.cpp gives to the tensors of a model of transformers, by the tables of the package `gguf`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from unforgotten.audit.sources.matching.prefixes import core
from unforgotten.records.extras import need

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPERT = re.compile(r"\.experts\.(\d+)\.")
OTHERS = ("LLAMA", "PHI3")
"""Architectures whose tables are tried where a file names none that is known."""
ENDINGS = (".weight",)


class Place(NamedTuple):
    """Where a matrix stands in a GGUF file: the name of the tensor, and which of its experts it is, None of no expert."""

    name: str
    expert: int | None = None


def gguf_places(names: Iterable[str], there: Mapping[str, object], architecture: str) -> dict[str, Place]:
    """Return the place of each matrix that the file has.

    Args:
        names: names of the matrices, of transformers or of llama.cpp.
        there: tensors of the file, by name.
        architecture: name of the architecture, as the file says it.

    Raises:
        ValueError: the package `gguf` is missing.
    """
    found = {name: Place(name) for name in names if name in there}
    rest = [name for name in names if name not in found]
    if not rest:
        return found
    tables = _tables(
        architecture, 1 + max((int(n) for name in rest for n in re.findall(r"\.(\d+)\.", name)), default=0)
    )
    for name in rest:
        expert = EXPERT.search(name)
        whole = EXPERT.sub(".experts.", name)
        for key in (table.get_name(one, ENDINGS) for table in tables for one in _spellings(whole)):
            if key in there:
                found[name] = Place(key, None if expert is None else int(expert[1]))
                break
    return found


def _tables(architecture: str, layers: int) -> list[Any]:
    need("unforgotten[gguf]", "gguf")
    import gguf

    kinds = [kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    kinds = kinds or [gguf.MODEL_ARCH[name] for name in OTHERS]
    return [gguf.get_tensor_name_map(kind, layers) for kind in kinds]


def _spellings(name: str) -> Iterator[str]:
    """Yield a name as it is, and within the wrappers that the tables know."""
    yield name
    inner = core(name)
    yield from (f"model.{inner}", f"transformer.{inner}", inner)
