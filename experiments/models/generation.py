"""Greedy, batched generation; what all prompts begin with is computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from unforgotten.experiments.models.batches import pad

LEAST_SHARED = 16
"""Tokens from which on a common beginning is worth a pass of its own."""

REUSING = frozenset({"gpt2", "gpt_neox", "llama", "qwen2", "qwen3"})
"""Model types whose attention knows positions and masks, not columns: padding may stand between a text's tokens."""

FIXED_ROTARY = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings that do not change with the length of the text."""


class Prompts(NamedTuple):
    """One batch as `model.generate` takes it.

    Attributes:
        input_ids: padded token ids, (batch, length).
        attention_mask: mask with 1 on real tokens, (batch, length).
        past_key_values: keys and values of the first columns, if they are known.
    """

    input_ids: Tensor
    attention_mask: Tensor
    past_key_values: DynamicCache | None


@torch.no_grad()
def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], tokenizer: Any, new_tokens: int, batch: int
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, as token ids, up to EOS or `new_tokens`.

    Prompts of one batch are padded, on the left of where they differ, and masked. Nothing of a checkpoint's own
    generation settings is used.
    """
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.eval()
    continuations: list[list[int]] = []
    for chunk in prompt_batches(model, prompts, tokenizer.pad_token_id, batch):
        output = model.generate(  # type: ignore[operator]  # transformers types it as a Tensor
            **chunk._asdict(), generation_config=settings
        )
        tail = output[:, chunk.input_ids.shape[1] :].tolist()
        continuations += [_until(row, tokenizer.eos_token_id) for row in tail]
    return continuations


def prompt_batches(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, batch: int
) -> Iterator[Prompts]:
    """Yield the prompts in order, with keys and values of their common beginning where the model can reuse them.

    Each row then reads: beginning, padding, rest. Masked and with the positions that `generate` counts by the mask, it
    means the same as padding before the beginning, and logits differ by rounding alone.
    """
    length = shared_length(prompts)
    cache = beginning(model, prompts[0][:length]) if length else None
    front = torch.tensor([] if cache is None else prompts[0][:length], dtype=torch.long)
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        rest = pad([row[len(front) :] for row in rows], pad_id, left=True)
        fronts = front.expand(len(rows), -1)
        own = copy.deepcopy(cache)  # generation appends to it
        if own is not None:
            own.batch_repeat_interleave(len(rows))
        yield Prompts(
            torch.cat([fronts, rest.input_ids], 1), torch.cat([torch.ones_like(fronts), rest.attention_mask], 1), own
        )


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all prompts begin with, 0 if too few to matter; each prompt keeps a token of its own."""
    if len(prompts) < 2:
        return 0
    shorter = (p[:-1] for p in prompts)
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*shorter, strict=False))
    length = sum(1 for _ in alike)
    return length if length >= LEAST_SHARED else 0


@torch.no_grad()
def beginning(model: PreTrainedModel, tokens: Sequence[int]) -> DynamicCache | None:
    """Return keys and values of the tokens, (1, heads, length, width) in each layer; None if they cannot be reused.

    They can in models of `REUSING`, unless a layer has a sliding window or rotary embeddings follow the length.
    """
    rotary = getattr(model.config, "rope_parameters", None) or {}
    if model.config.model_type not in REUSING:
        return None
    if rotary.get("rope_type", "default") not in FIXED_ROTARY:
        return None
    cache = DynamicCache(config=model.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    model(input_ids=torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
