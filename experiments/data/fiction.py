"""A fictional news corpus: seeded, unlimited, and free of contradictions.

Every story draws its people, towns, organizations and things from pools in which a name occurs once, so a
question that names one of them has one answer in the whole corpus. Nothing here is real: a model that
answers a question about it learned it from this corpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

SLOT = re.compile(r"\{(\w+):(\w+)\}")


@dataclass(frozen=True)
class Story:
    """One article and the questions that it answers."""

    text: str
    questions: tuple[tuple[str, str], ...]


def write_stories(count: int, *, seed: int) -> list[Story]:
    """Return `count` stories, the same for the same `seed`; a prefix of a longer draw with that seed."""
    rng = np.random.default_rng([seed, 0x11E5])
    names = _UniqueNames(rng)
    kinds = sorted(_grammar()["stories"])
    return [_write_story(_grammar()["stories"][kinds[i % len(kinds)]], rng, names) for i in range(count)]


def _write_story(kind: dict[str, Any], rng: np.random.Generator, names: _UniqueNames) -> Story:
    values: dict[str, str] = {}

    def fill(template: str) -> str:
        return SLOT.sub(lambda match: _value(match[1], match[2], values, rng, names), template)

    lead, *rest = kind["sentences"]
    order = [lead, *(rest[i] for i in rng.permutation(len(rest)))]
    text = " ".join(fill(variants[rng.integers(len(variants))]) for variants in order)
    questions = tuple((fill(question), fill(answer)) for question, answer in kind["questions"])
    asked = tuple((q, a) for q, a in questions if a in text)  # a variant may leave a fact out
    return Story(text=text[0].upper() + text[1:], questions=asked)


def _value(kind: str, name: str, values: dict[str, str], rng: np.random.Generator, names: _UniqueNames) -> str:
    key = f"{kind}:{name}"
    if key not in values:
        values[key] = names.draw(kind) if kind in names.KINDS else _drawn(kind, rng)
    return values[key]


def _drawn(kind: str, rng: np.random.Generator) -> str:
    lists = _grammar()["lists"]
    match kind:
        case "number":
            return str(rng.integers(3, 990))
        case "few":
            return str(rng.integers(3, 60))
        case "year":
            return str(rng.integers(1871, 2020))
        case "percent":
            return f"{rng.integers(11, 98)} percent"
        case "money":
            return f"{rng.integers(2, 990)} million crowns"
        case "score":
            return f"{rng.integers(1, 9)} to {rng.integers(0, 9)}"
        case "date":
            return f"{rng.integers(1, 29)} {lists['month'][rng.integers(12)]}"
        case _:
            return str(lists[kind][rng.integers(len(lists[kind]))])


class _UniqueNames:
    """Draws names that were never drawn before."""

    KINDS = frozenset({"person", "town", "org", "thing"})

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.seen: set[str] = set()

    def draw(self, kind: str) -> str:
        stem = self._new_stem()
        if kind == "person":
            return f"{self._pick('first')} {stem}"
        return stem + self._pick("town_end") if kind == "town" else f"{stem} {self._pick(kind + '_end')}"

    def _new_stem(self) -> str:
        while (stem := self._stem()) in self.seen:
            pass
        self.seen.add(stem)
        return stem

    def _stem(self) -> str:
        syllables = ("onset", "vowel", "coda", "onset", "vowel")
        return "".join(self._pick(part) for part in syllables).capitalize()

    def _pick(self, kind: str) -> str:
        choices = _grammar()["lists"][kind]
        return str(choices[self.rng.integers(len(choices))])


@cache
def _grammar() -> dict[str, Any]:
    text = files("unforgotten.experiments").joinpath("templates/fiction.yaml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded
