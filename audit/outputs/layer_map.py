"""The map of layers on the page: one table a format, a row a layer, a column a kind of tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from unforgotten.audit.findings.spread import LAYER, layer_of
from unforgotten.audit.outputs.result_rows import TensorRow

LOST, AMPLIFIED = (214, 69, 56), (61, 126, 204)  # at a gain of 0, and of 2
PALEST = 0.75  # of a colour's way to white, kept for text to be read on it


@dataclass(frozen=True)
class Cell:
    """One tensor: its name, its value, the colour behind it and the id of its row on the page."""

    name: str
    value: float | None
    colour: str
    row: str


@dataclass(frozen=True)
class Line:
    """One layer, with a cell a kind; None where it has no such tensor."""

    layer: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class LayerMap:
    """One format."""

    format: str
    kinds: list[str]
    lines: list[Line]


def layer_maps(compared: str, rows: Sequence[TensorRow]) -> list[LayerMap]:
    """Return maps of the gain, or of the share of codes that differ; in the order of the page's tables."""
    ordered = sorted((r for r in rows if r["grid"] == "adaptive"), key=lambda row: row["format"])
    return [
        _map(compared, name, number, list(group))
        for number, (name, group) in enumerate(groupby(ordered, lambda row: row["format"]))
    ]


def _map(compared: str, name: str, number: int, rows: Sequence[TensorRow]) -> LayerMap:
    found: dict[str, dict[str, Cell]] = {}
    for index, row in enumerate(rows):
        value = row["gain"] if compared == "weights" else row["code_flips"] / row["weights"]
        colour = colour_of(value) if compared == "weights" else colour_of(1 + (value or 0.0))
        cell = Cell(row["name"], value, colour, f"t-{number}-{index}")
        found.setdefault(layer_of(row["name"]), {})[kind_of(row["name"])] = cell
    kinds = list(dict.fromkeys(kind for cells in found.values() for kind in cells))
    lines = [Line(layer, [found[layer].get(kind) for kind in kinds]) for layer in sorted(found, key=_order)]
    return LayerMap(name, kinds, lines)


def kind_of(name: str) -> str:
    """Return the part of a tensor's name behind its layer's number; `weight` where there is no number."""
    found = LAYER.search(name)
    return name[found.end() :] if found else "weight"


def _order(layer: str) -> tuple[bool, int, str]:
    return (not layer.isdecimal(), int(layer) if layer.isdecimal() else 0, layer)


def colour_of(gain: float | None) -> str:
    """Return the colour of a gain: from red at 0 over white at 1 to blue at 2; white without a gain."""
    if gain is None:
        return "#ffffff"
    away = max(-1.0, min(1.0, gain - 1.0))
    strong = LOST if away < 0 else AMPLIFIED
    parts = (round(255 + (c - 255) * PALEST * abs(away)) for c in strong)
    return "#" + "".join(f"{c:02x}" for c in parts)
