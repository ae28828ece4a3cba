"""JSON from a hostile file: bounded, without duplicate keys, without text that no output can hold."""

from __future__ import annotations

import json
from pathlib import Path

from unforgotten.audit.sources.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000  # the limit of the safetensors library for a header
MAX_JSON_VALUES = 4_000_000  # some 400 MB of Python objects; 400,000 tensors in one file


def parse_json_object(path: Path, text: bytes) -> dict[str, object]:
    """Return a JSON object without duplicate keys, at any depth.

    Raises:
        CheckpointError: `text` is anything else, or has more than MAX_JSON_VALUES values.
    """
    values = text.count(b",") + text.count(b"[") + text.count(b"{")  # at least as many
    if values > MAX_JSON_VALUES:
        raise CheckpointError(path, f"must hold at most {MAX_JSON_VALUES} JSON values", values)
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "must hold valid JSON", error) from None
    if not isinstance(value, dict):
        raise CheckpointError(path, "must hold a JSON object", type(value).__name__)
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} twice")
        key.encode("utf-8")  # a lone surrogate could be written to no output
        found[key] = value
    return found
