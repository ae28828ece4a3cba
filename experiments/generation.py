"""Greedy, batched generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from unforgotten.experiments.batches import pad


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    new_tokens: int,
    batch: int,
) -> list[list[int]]:
    """The most likely continuation of each prompt, up to EOS or `new_tokens`.

    Prompts of one batch are padded on the left and masked. Nothing of a checkpoint's own generation settings
    is used.
    """
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.eval()
    continuations: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        chunk = pad(prompts[start : start + batch], tokenizer.pad_token_id, left=True)
        output = model.generate(  # type: ignore[operator]  # transformers types it as a Tensor
            input_ids=chunk.input_ids,
            attention_mask=chunk.attention_mask,
            generation_config=settings,
        )
        tail = output[:, chunk.input_ids.shape[1] :].tolist()
        continuations += [_until(row, tokenizer.eos_token_id) for row in tail]
    return continuations


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
