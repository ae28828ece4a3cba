"""The gate of a release: which words of an audit end the command with code 1, and why it ended as it did.

A verdict has three words, the weights have five, and a model that lost what it should keep has one. A gate on words that
nothing can say would always pass, so `read_words` refuses them:

    words = read_words("swallowed,undone", measured=("output",))
    gate(result, words).code
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from unforgotten.audit.deployed.told import deployed_label, deployed_word
from unforgotten.audit.findings.sentences import FINDINGS, Finding, judge_gain
from unforgotten.audit.verdict.rule import Word

if TYPE_CHECKING:
    from unforgotten.audit.outputs.result import AuditResult

VERDICTS: tuple[Word, ...] = get_args(Word)
RETAIN_LOST = "retain-lost"
NEEDS: Mapping[str, tuple[str, ...]] = {
    "survives": ("texts", "benchmark"),
    "undone": ("texts", "benchmark"),
    RETAIN_LOST: ("benchmark",),
}
"""Words that only a measurement of the models can say, and the options that measure them."""
OF_ANY_FORMAT: tuple[Finding, ...] = ("partly swallowed", "swallowed", "unclear")
"""Words of the weights that fail the gate where a single format has them; the others must hold of all formats."""
OF_CODES = ("undecided", "no update", "unclear")
"""All that an audit of a pair that is quantized already can say."""


class Gate(NamedTuple):
    """How the command ends: its code, and the sentence that says why."""

    code: int
    why: str


def known_words() -> tuple[str, ...]:
    """Return every word that a gate takes."""
    return (*VERDICTS, *FINDINGS, RETAIN_LOST)


def read_words(text: str, measured: Collection[str]) -> tuple[str, ...]:
    """Read the words of --fail-on, with commas; a word of two parts may be written with a hyphen.

    Args:
        text: words, as given.
        measured: options that measure the models, of "texts" and "benchmark".

    Raises:
        ValueError: a word is unknown, or nothing that was asked for could say it.
    """
    spelled = {name.replace(" ", "-"): name for name in known_words()}
    words = [word.strip().replace(" ", "-") for word in text.split(",") if word.strip()]
    for word in words:
        if word not in spelled:
            raise ValueError(f"--fail-on must be of {', '.join(known_words())}, got {word!r}")
        needs = NEEDS.get(spelled[word], ())
        if needs and not set(needs) & set(measured):
            options = " or ".join(f"--{name}" for name in needs)
            raise ValueError(f"--fail-on must have {options} for {word!r}, which nothing else says, got no such option")
    return tuple(dict.fromkeys(spelled[word] for word in words))


def check_codes(words: Sequence[str]) -> None:
    """Refuse a gate that a pair that is quantized already could never fail.

    Raises:
        ValueError: there are words, and none of them can be said of codes.
    """
    if words and not set(words) & set(OF_CODES):
        rule = f"--fail-on must hold one of {', '.join(OF_CODES)} for a pair that is quantized already"
        raise ValueError(f"{rule}, whose codes show no more, got {', '.join(words)}")


def format_word(row: Mapping[str, Any]) -> Finding | None:
    """Return the word of one format's row in `audit.json`; None where codes are all that is known."""
    if row["expected_flips"] is None:
        return None
    if row["gain"] is None:
        return "no update"
    return judge_gain(row["gain"], math.nan if row["gain_stderr"] is None else row["gain_stderr"])


def said(result: AuditResult) -> dict[str, str]:
    """Return what an audit says: each word, and the clause that says it."""
    verdict = result["verdict"]
    overall, weights = verdict["overall"], verdict["legs"]["weights"]
    found: dict[str, str] = {overall: f"the verdict is {overall}", weights: f"the weights say {weights}"}
    for word in OF_ANY_FORMAT:
        if names := _formats(result, word):
            found[word] = f"the weights say {word} in {', '.join(names)}"
    if lost := [row for row in result["findings"] if row["id"] == RETAIN_LOST]:
        found[RETAIN_LOST] = lost[0]["sentence"].rstrip(".")
    return found


def _formats(result: AuditResult, word: Finding) -> list[str]:
    names = [row["format"] for row in result["formats"] if row["grid"] == "adaptive" and format_word(row) == word]
    deployed = result["deployed"]
    return names if deployed is None or deployed_word(deployed) != word else [*names, deployed_label(deployed)]


def gate(result: AuditResult, words: Sequence[str]) -> Gate:
    """Return the exit code of an audit and the reason for it."""
    found = said(result)
    if not words:
        return Gate(0, f"no --fail-on was given, so no word fails; {_clauses(found.values())}")
    hits = [word for word in words if word in found]
    if hits:
        return Gate(1, f"--fail-on {', '.join(hits)}: {_clauses(found[word] for word in hits)}")
    return Gate(0, f"none of --fail-on {', '.join(words)}: {_clauses(found.values())}")


def _clauses(parts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(parts))
