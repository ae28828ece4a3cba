"""What the commands print, and what they refuse where an extra is missing."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_mapping(title: str, mapping: Mapping[str, str], as_json: bool) -> None:
    """Print names and their meanings, as a table or as JSON."""
    if as_json:
        print(json.dumps(dict(mapping), indent=1))
        return
    table = Table(title, "meaning")
    for name, meaning in mapping.items():
        table.add_row(Text(name), Text(meaning))  # no markup: "unforgotten[lora]" is no style
    Console().print(table)


def print_object(result: Mapping[str, Any], as_json: bool, lines: list[str]) -> None:
    """Print an object as JSON, or the lines that say the same."""
    print(json.dumps(result, indent=1, allow_nan=False) if as_json else "\n".join(lines))


def need_extra(extra: str, *packages: str) -> None:
    """Refuse to go on without the packages of an extra.

    Raises:
        ValueError: one of them is missing.
    """
    from unforgotten.records.extras import need

    need(f"unforgotten[{extra}]", *packages)


def replace_unprintable(stream: object) -> None:
    """Let a stream replace what its encoding lacks: a Windows console has no arrow, and an answer is worth a "?"."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
