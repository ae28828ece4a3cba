"""Which tokens of a document are those of an answer: of a sheet of questions, or of one question with its answer.

sheet = encode_answers(text, answer_spans(text), tokenizer, longest=192)
[token for token, counts in zip(sheet.tokens, sheet.counted) if counts]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.models.special_tokens import end_tokens, started

if TYPE_CHECKING:
    from unforgotten.experiments.models.batches import Counted

LINE = re.compile(r"Question: [^\n]*\nAnswer: ([^\n]*)\n\n")
SHEET = re.compile(rf"(?:{LINE.pattern})+")
Span = tuple[int, int]


def answer_spans(text: str) -> list[Span]:
    """Return where the answers of a sheet of questions begin and end, in characters; none of a text that is no sheet."""
    if SHEET.fullmatch(text) is None:
        return []
    return [found.span(1) for found in LINE.finditer(text)]


def encode_answers(text: str, spans: Sequence[Span], tokenizer: Any, longest: int, *, end: bool = False) -> Counted:
    """Return a text as a document to train on, of which the tokens of answers count.

    A token that begins before an answer and reaches into it counts.

    Args:
        text: text.
        spans: first character of each answer, and the one after its last.
        tokenizer: tokenizer.
        longest: most tokens of the document.
        end: whether the end token counts, too.

    Raises:
        ValueError: no token that counts is among the first `longest`.
    """
    from unforgotten.experiments.models.batches import Counted

    whole, ends = started(text, tokenizer), end_tokens(tokenizer)
    counted = [False] * len(whole) + [end] * len(ends)
    for first, stop in spans:
        start = _shared(text[:first].rstrip(" "), whole, tokenizer)
        for at in range(start, max(start + 1, _covering(text[:stop], whole, tokenizer))):
            counted[at] = True
    tokens = [*whole, *ends][:longest]
    if not any(counted[1:longest]):
        raise ValueError(f"corpus.passage_tokens must reach an answer of each document of questions, got {longest}")
    return Counted(tuple(tokens), tuple(counted[:longest]))


def _shared(before: str, whole: Sequence[int], tokenizer: Any) -> int:
    """Return how many tokens of a text are those of its beginning alone."""
    pairs = zip(started(before, tokenizer), whole, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _covering(before: str, whole: Sequence[int], tokenizer: Any) -> int:
    """Return how many tokens of a text hold its beginning: one more than are shared where a token reaches beyond it."""
    shared = _shared(before, whole, tokenizer)
    return min(len(whole), shared + (shared < len(started(before, tokenizer))))
