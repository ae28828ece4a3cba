"""A format name that stands for what a tool does to a whole model, and the formats that it gives to its matrices.

formats_of("gguf:Q4_K_M", {"model.layers.0.mlp.down_proj.weight": (576, 1536), ...}, ())
"""

from __future__ import annotations

from unforgotten.audit.mixes.llama_cpp import Shapes, types_of
from unforgotten.audit.mixes.tools import check_not_of_a_tool
from unforgotten.theory.formats.gguf import FILES, GGUF
from unforgotten.theory.formats.names import Format, deterministic_format_named

PREFIX = "gguf:"


def is_mix(name: str) -> bool:
    """Return whether a name stands for a mix: `gguf:` and a type of a file of llama.cpp."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) in FILES


def check_name(name: str) -> None:
    """Check a name of `--formats`.

    Raises:
        ValueError: it is neither a format that rounds to nearest nor a mix; where it is a tool's own name, what takes its place is said.
    """
    if is_mix(name):
        return
    check_not_of_a_tool(name)
    if name.startswith(PREFIX):
        known = ", ".join(PREFIX + one for one in FILES)
        raise ValueError(f"format must be one of {known} where it stands for a file of llama.cpp, got format={name!r}")
    if name.upper() in FILES and name not in GGUF:
        raise ValueError(f"format must be known, got format={name!r}; the nearest is {PREFIX + name.upper()!r}")
    deterministic_format_named(name)


def formats_of(name: str, shapes: Shapes, quantized: tuple[str, ...]) -> dict[str, Format]:
    """Return the format of each matrix that a format of a model touches: those of `quantized` for one that is no mix.

    Raises:
        ValueError: the name is unknown, or the mix cannot be told for this model.
    """
    if not is_mix(name):
        return dict.fromkeys(quantized, deterministic_format_named(name))
    types = types_of(shapes, name.removeprefix(PREFIX))
    known = {kind: deterministic_format_named(kind.lower()) for kind in set(types.values())}
    return {key: known[kind] for key, kind in types.items()}
