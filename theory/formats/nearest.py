"""The known name of a format that is nearest to one that is not known, for the message that says so."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

SIZES = (64, 32, 128, 256)
BITS = range(2, 9)
SUFFIXES = ("", "-asym", "-dither", "-paper", "-ct", "-ct-asym", "-ao", "-ao-asym")
OTHERS = (
    "nf4-b64-dq",
    "fp4-b64-dq",
    "llmint8-row",
    "fp8-row",
    "fp8-tensor",
    "fp8-b128x128",
    "fp8-cast",
    "nvfp4",
    "mxfp4-b32",
    "mxfp4-b32-ct",
)
GGUF = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q3_k", "q4_k", "q5_k", "q6_k")


def examples() -> Iterator[str]:
    """Yield names of every family, at the sizes of blocks that are in use."""
    blocks = ("row", *(f"g{n}" for n in SIZES), "tensor")
    for suffix in SUFFIXES:
        yield from (f"int{bits}-{block}{suffix}" for bits in BITS for block in blocks)
    yield from (f"{kind}-b{n}" for kind in ("nf4", "fp4") for n in SIZES)
    yield from (f"hqq{bits}-g{n}" for bits in BITS for n in SIZES)
    yield from (*OTHERS, *GGUF)


def nearest(name: str) -> str:
    """Return the name of `examples` that begins with `name`, else the one that shares most with it, in any case.

    >>> nearest("int4g64"), nearest("Q4_K_M")
    ('int4-g64', 'q4_k')
    """
    asked = name.lower().strip().replace("_", "-")
    known = {example.replace("_", "-"): example for example in examples()}
    beginning = [example for example in known if example.startswith(asked)]
    return known[(beginning or difflib.get_close_matches(asked, known, n=1, cutoff=0.0))[0]]
