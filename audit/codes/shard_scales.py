"""Scales of a matrix that is several matrices under one another, one scale each: queries, keys and values; gate and up.

The rows of gate and up are halves. Those of queries, keys and values follow from the heads that `config.json` states.
"""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.audit.codes.layer import Parts
from unforgotten.audit.sources.model_config import model_config_of

SHARDS: Mapping[str, int] = {"qkv_proj": 3, "gate_up_proj": 2}
"""Last name of a module -> how many matrices it holds, one after another."""
SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")


def shard_count(name: str) -> int:
    """Return how many matrices a layer holds by its name; 1 of one that is not known to hold several."""
    return SHARDS.get(name.rpartition(".")[2], 1)


def shard_rows(parts: Parts, ending: str, outs: int) -> list[int]:
    """Return the number of rows of each matrix of a layer.

    Args:
        parts: parts of the layer.
        ending: ending of its scales, for messages.
        outs: rows of all of them.

    Raises:
        CheckpointError: nothing says how the rows are shared out.
    """
    count = shard_count(parts.name)
    if count == SHARDS["gate_up_proj"]:
        if outs % count:
            raise parts.refuse(ending, f"must have one scale, or {count} of an even number of rows", f"{outs} rows")
        return [outs // count] * count
    if count == SHARDS["qkv_proj"]:
        heads, groups, size = _heads(parts)
        if heads and (heads + 2 * groups) * size == outs:
            return [heads * size, groups * size, groups * size]
    rule = (
        f"must have one scale, or {count} over a config.json with {', '.join(SIZES[:3])} that make its {outs} rows "
        "(which rows a scale is for)"
    )
    raise parts.refuse(ending, rule, f"{count} scales")


def _heads(parts: Parts) -> tuple[int, int, int]:
    """Return the heads of queries, those of keys and values, and the size of one; zeros where nothing states them."""
    config = model_config_of(parts.checkpoint)
    inner = config.get("text_config")
    config = {**config, **inner} if isinstance(inner, dict) else config
    heads, groups, size, hidden = (_size(config.get(key)) for key in SIZES)
    if not heads:
        return 0, 0, 0
    return heads, groups or heads, size or hidden // heads


def _size(value: object) -> int:
    return value if type(value) is int and 0 < value < 2**31 else 0
