"""The tokens around a text, which tokenizers do not agree on: some put a start token in front, some have one and do not."""

from __future__ import annotations

from itertools import takewhile
from typing import Any


def start_tokens(tokenizer: Any) -> list[int]:
    """Return what the tokenizer itself puts before a text: what its models were trained with. Often one token, or none."""
    special = set(tokenizer.all_special_ids)
    return list(takewhile(special.__contains__, tokenizer.encode("a", add_special_tokens=True)))


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the token that ends a document; none where the tokenizer has none."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def padding(tokenizer: Any) -> int:
    """Return a token to pad with: masked, so that it may be any where the tokenizer names none."""
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in named if token is not None), 0)


def encode(text: str, tokenizer: Any) -> list[int]:
    """Return the tokens of a text and of nothing else; special tokens are spelled out by `start_tokens` and `end_tokens`."""
    return list(tokenizer.encode(text, add_special_tokens=False))
