"""Layers of multi-token prediction (MTP): drafts of the tokens after the next one, which plain decoding does not run.

Files have them as `mtp.*` (Qwen, MiMo), as one more decoder layer with `eh_proj`, `enorm` and `hnorm` in it (DeepSeek,
GLM), or with `nextn.*` (GGUF). Loading and saving a model drops them, so that often one file of a pair alone has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from unforgotten.audit.sources.notes import named
from unforgotten.audit.sources.safetensors_header import TensorInfo

MODULE = re.compile(r"^(?:.*\.)?mtp\w*\.")
"""What a tensor of a module named for it begins with."""
LAYER = re.compile(r"^(.*(?:^|\.)(?:layers|blk)\.\d+\.)(?:eh_proj|enorm|hnorm|shared_head|nextn)\.")
"""A tensor that only such a layer has; the group is what all tensors of the layer begin with."""


def mtp_of_one(own: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo]) -> list[str]:
    """Return the tensors of whole MTP layers of one checkpoint of which the other one has nothing."""
    alone = [name for name in own if name not in other]
    starts = {match[0] for name in alone if (match := MODULE.match(name))}
    starts |= {match[1] for name in alone if (match := LAYER.match(name))}
    shared = tuple(start for start in starts if any(name.startswith(start) for name in other))
    found = tuple(starts.difference(shared))
    return [name for name in alone if found and name.startswith(found)]


def mtp_note(side: str, names: list[str], own: Mapping[str, TensorInfo]) -> str:
    """Return the sentence on the MTP layers of one side, with their share of the numbers that it stores."""
    sizes = {name: math.prod(info.shape) for name, info in own.items()}
    part = sum(sizes[name] for name in names) / max(1, sum(sizes.values()))
    return (
        f"Only the {side} stores multi-token prediction, which plain decoding does not run: {len(names)} tensors with "
        f"{100 * part:.1f} % of its numbers are not compared: {named(names)}."
    )
