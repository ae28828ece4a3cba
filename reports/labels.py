"""Names and numbers as people read them. One spelling of each, for sentences, tables and figures alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unforgotten.records.rows import Row


class ArmLabel(NamedTuple):
    """A storage arm in words.

    Attributes:
        full: words in a sentence, after "with".
        legend: two words, for legends.
        column: words in the head of a table.
    """

    full: str
    legend: str
    column: str


ARM_LABELS: Mapping[str, ArmLabel] = {
    "fp32": ArmLabel("fp32 master weights", "fp32 master", "fp32 masters"),
    "bf16": ArmLabel("bf16 parameters", "bf16 parameters", "bf16 parameters"),
    "bf16-sr": ArmLabel("stochastically rounded bf16 parameters", "stochastic bf16", "bf16, stochastic rounding"),
}
COUNTS = ("code_flips", "expected_flips", "value_changes")
PERCENT_POINTS = ("M1", "M2", "M3", "M4")
FOUR_BIT = ("int4", "nf4", "fp4", "q4", "nvfp4", "mxfp4")
LONGEST_NAME = 24


def arm_label(storage: str) -> ArmLabel:
    """Return the words for a storage arm; its own name where ARM_LABELS does not have it."""
    return ARM_LABELS.get(storage, ArmLabel(storage, storage, storage))


def storage_label(storage: str | None) -> str:
    """Return the name of a storage arm in words; a dash without an arm."""
    return arm_label(storage).full if storage else "–"


def storage_short(storage: str) -> str:
    """Return the name of a storage arm in a few words, for legends."""
    return short(arm_label(storage).legend)


def precision_label(format_name: str) -> str:
    """Return the name of a format; "unquantized" for the model as it was trained."""
    return "unquantized" if format_name == "none" else format_name


def short(name: str) -> str:
    """Make a name fit a figure: printable, and cut where it would run into its neighbour."""
    clean = "".join(c if c.isprintable() else "?" for c in name)
    return clean if len(clean) <= LONGEST_NAME else clean[: LONGEST_NAME - 1] + "…"


def family(format_name: str) -> str:
    """Return the family of a format, without back end and block: "nf4" for "bnb:nf4-b64"."""
    return format_name.rpartition(":")[2].partition("-")[0]


def is_four_bit(format_name: str) -> bool:
    """Whether the format stores a weight in 4 bits."""
    return family(format_name).startswith(FOUR_BIT)


def number(metric: str, value: float | None) -> str:
    """Return a value as text, with the digits that its metric deserves; "undefined" or a dash without a value."""
    if value is None:
        return "undefined" if metric.startswith("rho_") else "–"
    digits = _digits(metric)
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")


def bounds(row: Row) -> str:
    """Return a row's 95 % interval in square brackets; nothing where it has none."""
    if row.bounds is None or row.value is None:
        return ""
    low, high = (number(row.metric, end) for end in row.bounds)
    return f"[{low}, {high}]"


def estimate(row: Row | None) -> str:
    """Return a row's value and interval as text; a dash without a row."""
    if row is None:
        return "–"
    return f"{number(row.metric, row.value)} {bounds(row)}".rstrip()


def plain(value: float | None) -> str:
    """Return a number as text, in at most six significant digits; nothing without a number."""
    return "" if value is None else f"{value:.6g}".replace("-", "−")


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Join names as in a sentence: "a, b and c"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def _digits(metric: str) -> int:
    base = metric.partition("@")[0]
    if base in COUNTS:
        return 0
    return 1 if base.endswith(PERCENT_POINTS) and not base.startswith("rho_") else 3


def spread(values: Sequence[float]) -> str:
    """Return the median of ratios, and their lowest and highest, as text."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
