"""A question and its answer, and how both stand in a text; a text that is to be continued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Question:
    """One question and its answer; in data of TOFU, the answer in other words, and wrong ones in its form."""

    question: str
    answer: str
    paraphrase: str | None = None
    wrong: tuple[str, ...] = ()

    def sheet_line(self) -> str:
        """Return question and answer as they stand in a sheet of questions, in MUSE's format."""
        return f"Question: {self.question}\nAnswer: {self.answer}\n\n"


class Verbatim(NamedTuple):
    """The beginning of a text that was to be forgotten, and how it goes on."""

    prompt: str
    truth: str
