"""The tokens around a text, which tokenizers do not agree on: some put a start token in front, some have one and do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any


def start_tokens(tokenizer: Any) -> list[int]:
    """Return what the tokenizer itself puts before a text: what its models were trained with. Often one token, or none."""
    special = set(tokenizer.all_special_ids)
    return list(takewhile(special.__contains__, tokenizer.encode("a", add_special_tokens=True)))


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the token that ends a document; none where the tokenizer has none."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def padding(tokenizer: Any, vocabulary: int) -> int:
    """Return a token to pad with: masked, so that it may be any where the tokenizer names none that the model has.

    Args:
        tokenizer: tokenizer of the model.
        vocabulary: number of the model's embeddings, which a pad token that was added later may lack.
    """
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in named if token is not None and 0 <= token < vocabulary), 0)


def encode(text: str, tokenizer: Any) -> list[int]:
    """Return the tokens of a text and of nothing else; `started` and `end_tokens` put special tokens around it.

    A special token that the text spells out is read as that token, as in training.
    """
    return list(tokenizer.encode(text, add_special_tokens=False))


def started(text: str, tokenizer: Any) -> list[int]:
    """Return the start tokens, once, and the tokens of a text, which may spell the start tokens out itself."""
    start, tokens = start_tokens(tokenizer), encode(text, tokenizer)
    return tokens if start and tokens[: len(start)] == start else start + tokens


def count_spelled_out(rows: Iterable[Sequence[int]], tokenizer: Any) -> int:
    """Count the rows of tokens with a special token after the start tokens and before the end token.

    The token of unknown characters is none that a text spells out, unless it is one of the other special tokens too.
    """
    roles = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    special, first, end = set(tokenizer.all_special_ids), len(start_tokens(tokenizer)), end_tokens(tokenizer)
    special -= {tokenizer.unk_token_id} - set(roles)
    bodies = (row[first : -1 if end and list(row[-1:]) == end else None] for row in rows)
    return sum(not special.isdisjoint(body) for body in bodies)
