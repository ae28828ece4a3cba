"""What tools call their formats, and what those are here.

>>> meant("W4A16"), meant("bnb:nf4"), meant("int4-g64")
('int4-g128-ct', 'nf4-b64', None)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SCHEMES: Mapping[str, str] = {
    **{f"w{bits}a16": f"int{bits}-g128-ct" for bits in range(2, 9)},
    **{f"w{bits}a8": f"int{bits}-g128-ct" for bits in range(2, 8)},
    **{f"w{bits}a4": f"int{bits}-g128-ct" for bits in (2, 3, 4)},
    "w4a16_asym": "int4-g128-ct-asym",
    "w4afp8": "int4-g128-ct",
    "w8a8": "int8-row-ct",
    "INT8": "int8-row-ct",
    "fp8": "fp8-tensor",
    "fp8_dynamic": "fp8-row",
    "fp8_block": "fp8-b128x128",
    "nvfp4a16": "nvfp4",
    "mxfp4": "mxfp4-b32-ct",
    "mxfp4a16": "mxfp4-b32-ct",
}
"""Preset of compressed-tensors 0.19 -> our format of its weights: in any case of letters, but `INT8`, whose lower case
says no more than eight bits. `nvfp4` is called so here, too."""
BNB: Mapping[str, str] = {
    "bnb:nf4": "nf4-b64",
    "bnb:fp4": "fp4-b64",
    "bnb:nf4+dq": "nf4-b64-dq",
    "bnb:fp4+dq": "fp4-b64-dq",
    "bnb:int8": "llmint8-row",
    "load_in_4bit": "fp4-b64",
    "load_in_8bit": "llmint8-row",
    "llm.int8": "llmint8-row",
}
"""Name of bitsandbytes in transformers, in lower case -> our format."""
ELSEWHERE = re.compile(r"(mxfp8|awq|gptq|smoothquant|imatrix|iq\d|gguf:iq\d|q\d_k_xl|aqlm|quip|exl[23])", re.IGNORECASE)
"""Beginnings of names of quantizers that look at text or at an importance matrix, and of formats that are none of ours."""
BITSANDBYTES = re.compile(r"(nf4|fp4)-b\d+(-dq)?|llmint8-row")
"""Our formats of bitsandbytes."""


def meant(name: str) -> str | None:
    """Return our format of the weights that a tool's own name stands for; None where it is not known here."""
    return SCHEMES.get(name) or SCHEMES.get(name.lower()) or BNB.get(name.lower())


def check_not_of_a_tool(name: str) -> None:
    """Refuse the name of a tool's own format, and say what takes its place.

    Raises:
        ValueError: it is one.
    """
    ours = meant(name)
    if ours is not None:
        raise ValueError(f"format must be one of ours, got format={name!r}; its weights are in {ours!r}")
    if ELSEWHERE.match(name):
        rule = "format must be one of ours, which look at weights alone"
        raise ValueError(
            f"{rule}, got format={name!r}; quantize both models with the tool and give the files: --deployed QTARGET QUNLEARNED"
        )
