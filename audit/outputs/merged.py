"""Findings and reasons for a reader: what says the same of five formats is said once, and reasons are at most five.

`audit.json` keeps every finding; here they are put together by what they say. As in

    merged_findings(result["findings"])[0].sentence      # "int4-g64, int4-row: … (gain 0.12 to 0.31)."
    top_reasons(result)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from unforgotten.audit.findings.collect import ORDER
from unforgotten.audit.findings.row import FindingId, FindingRow, Severity
from unforgotten.audit.findings.sentences import Finding, share
from unforgotten.audit.outputs.result import AuditResult
from unforgotten.audit.outputs.result_rows import FormatRow, audited_formats
from unforgotten.audit.verdict.gate import format_word
from unforgotten.audit.verdict.rule import decide

MOST_REASONS = 5
MOST_OWN = 3  # of them, of the legs that measured models
SAYS: Mapping[FindingId, str] = {
    "swallowed": "the update is swallowed by the rounding cells, or part of it is (gain {})",
    "comes-back": "of what was forgotten, part comes back by the rounding cells, to first order (functional gain {})",
    "forgets-further": "the quantized model forgets further by the rounding cells, to first order (functional gain {})",
    "functional-gain": "the functional gain of {} tells neither that the forget loss comes back nor that it rises further",
    "zero-bin": "{} of the squared update lies in one cell at or beside zero",
    "on-grid": "{} of the moved weights lie on a level before the update, so changes below half a step are lost",
    "wash": "the update avoids the thresholds, or aims at them (flips over expected flips {})",
    "layers": "the first layer carries {} of the update that survives",
    "codes-differ": "{} of the stored codes differ",
    "retain-lost": "the quantized unlearned model lost what it should keep",
    "ran-in-dtype": "the dtype that models ran in swallows the update, or a part of it (gain of what ran {})",
    "theory-disagrees": "theory expects another gain from the given recipe than the measured {}",
}
"""What one sentence says of several formats; the braces take the range of the effect."""
SHARES: tuple[FindingId, ...] = ("zero-bin", "on-grid", "layers", "codes-differ")
WORDS: Mapping[Finding, str] = {
    "swallowed": "the update is swallowed by the rounding cells (gain {})",
    "partly swallowed": "part of the update is swallowed by the rounding cells (gain {})",
    "unclear": "too few codes flip to tell whether the update passes (gain {})",
    "passes": "the update passes (gain {})",
}
OF_ONE_FORMAT = re.compile(
    r"(?P<leg>\w+): in (?P<format>[^,]+), of what was removed from (?P<metric>\w+), "
    r"(?P<rho>-?\d+) % \[[^]]+\] (?P<says>[^(]+) \(\d+ items\)\."
)
"""A sentence of `verdict.rule` on one metric in one format."""
ASKED_FIRST: tuple[FindingId, ...] = (
    "ran-in-dtype",
    "comes-back",
    "zero-bin",
    "on-grid",
    "wash",
    "theory-disagrees",
    "advice",
)


class Merged(NamedTuple):
    """One finding for a reader, and the rows of `audit.json` that it stands for."""

    id: FindingId
    severity: Severity
    sentence: str
    rows: list[FindingRow]


def merged_findings(rows: Sequence[FindingRow]) -> list[Merged]:
    """Return the findings by severity, those that say the same of several formats as one."""
    groups: dict[tuple[str, ...], list[FindingRow]] = {}
    for row in rows:
        key = (row["id"],) if row["id"] in SAYS and row["format"] is not None else (row["id"], row["sentence"])
        groups.setdefault(key, []).append(row)
    found = [_merge(group) for group in groups.values()]
    return sorted(found, key=lambda one: ORDER.index(one.severity))


def _merge(rows: list[FindingRow]) -> Merged:
    first = rows[0]
    severity: Severity = next(word for word in ORDER if any(row["severity"] == word for row in rows))
    formats = list(dict.fromkeys(row["format"] for row in rows if row["format"] is not None))
    if len(rows) == 1 or not formats:
        return Merged(first["id"], severity, first["sentence"], rows)
    write = share if first["id"] in SHARES else _number
    effects = [row["effect"] for row in rows if row["effect"] is not None]
    says = SAYS[first["id"]].format(span(effects, write))
    return Merged(first["id"], severity, f"{', '.join(formats)}: {says}.", rows)


def _number(x: float) -> str:
    return f"{x:.2f}"


def span(values: Sequence[float], write: Callable[[float], str] = _number) -> str:
    """Return the range of some numbers in words: one where both ends print alike, and a dash for none."""
    if not values:
        return "–"
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low} to {high}"


def top_reasons(result: AuditResult) -> list[str]:
    """Return at most MOST_REASONS reasons of the verdict, each one sentence, the most important first."""
    own = own_reasons(result)
    measured = result["output"] is not None or result["behaviour"] is not None
    weights = [*dict.fromkeys(_weights_reasons(result))]
    if measured:
        return [*_joined(own)[:MOST_OWN], *weights][:MOST_REASONS]
    return [*weights[: MOST_REASONS - 1], *own[:1]]


def own_reasons(result: AuditResult) -> list[str]:
    """Return the reasons of the legs that measured models; of weights alone, that they settle nothing."""
    weights = result["verdict"]["legs"]["weights"]
    return decide(weights, result["output"], result["behaviour"], audited_formats(result["formats"]))["reasons"]


def _joined(reasons: Sequence[str]) -> list[str]:
    """Return the reasons of legs, those that say the same of one metric in several formats as one."""
    groups: dict[tuple[str, ...], list[re.Match[str]]] = {}
    for reason in reasons:
        found = OF_ONE_FORMAT.fullmatch(reason)
        if found is not None:
            groups.setdefault(found.group("leg", "metric", "says"), []).append(found)
    joined = []
    for reason in reasons:
        found = OF_ONE_FORMAT.fullmatch(reason)
        group = groups.pop(found.group("leg", "metric", "says"), []) if found else []
        if len(group) > 1:
            joined.append(_of_formats(group))
        elif group or found is None:
            joined.append(reason)
    return joined


def _of_formats(group: Sequence[re.Match[str]]) -> str:
    shares = span([float(one["rho"]) for one in group], lambda x: f"{x:.0f} %")
    names = ", ".join(one["format"] for one in group)
    first = group[0]
    return f"{first['leg']}: of what was removed from {first['metric']}, {shares} {first['says']} in {names}."


def _weights_reasons(result: AuditResult) -> Iterator[str]:
    if result["compared"] == "codes" or result["verdict"]["legs"]["weights"] == "no update":
        yield from (one.sentence for one in merged_findings(result["findings"]))
        return
    yield from word_sentences(result["formats"])
    found = merged_findings(result["findings"])
    for id in ASKED_FIRST:
        yield from (one.sentence for one in found if one.id == id)
    yield from (one.sentence for one in found if one.id == "dead-zone" and one.severity != "note")


def word_sentences(rows: Sequence[FormatRow]) -> Iterator[str]:
    """Yield one sentence a word of the weights: the formats that have it, and their gains."""
    by_word: dict[Finding, list[FormatRow]] = {}
    for row in rows:
        word = format_word(row)
        if row["grid"] == "adaptive" and word is not None:
            by_word.setdefault(word, []).append(row)
    for word, says in WORDS.items():
        if group := by_word.get(word):
            gains = [row["gain"] for row in group if row["gain"] is not None]
            yield f"{', '.join(row['format'] for row in group)}: {says.format(span(gains))}."
