"""Batched generation, greedy or sampled; what all prompts begin with is computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from unforgotten.experiments.models.batches import pad
from unforgotten.experiments.models.sampling import Drawing
from unforgotten.experiments.models.special_tokens import padding

LEAST_SHARED = 16
"""Tokens from which on a common beginning is worth a pass of its own."""

REUSING = frozenset({"gpt2", "gpt_neox", "llama", "qwen2", "qwen3"})
"""Model types whose attention knows positions and masks, not columns: padding may stand between a text's tokens."""

FIXED_ROTARY = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings that do not change with the length of the text."""

NEUTRAL: Mapping[str, Any] = {
    **dict.fromkeys(("do_sample", "remove_invalid_values", "renormalize_logits"), False),
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty", "length_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "epsilon_cutoff", "eta_cutoff", "diversity_penalty"), 0),
    **dict.fromkeys(("min_new_tokens", "min_p", "top_h", "bad_words_ids", "suppress_tokens", "sequence_bias"), None),
    **dict.fromkeys(("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "stop_strings"), None),
    **dict.fromkeys(("exponential_decay_length_penalty", "penalty_alpha", "dola_layers", "watermarking_config"), None),
    "num_beams": 1,
    "top_k": 50,
}
"""Settings of a checkpoint that decide which token `generate` takes, each with the value that says nothing."""

CACHE_BYTES = 3 * 2**25
"""Keys and values of the prompts of one batch at most, with what is generated; one prompt may have more."""


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
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    new_tokens: int,
    batch: int,
    *,
    drawing: Drawing | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, or one that is drawn, as token ids, up to EOS or `new_tokens`.

    Prompts of one batch are padded, on the left of where they differ, and masked. Nothing of a checkpoint's own
    generation settings is used: `overruled` names those that would change an answer.
    """
    most = max(1, CACHE_BYTES // (cache_bytes(model) * (new_tokens + max(map(len, prompts), default=1))))
    embedding: Any = model.get_input_embeddings()
    pad_id = padding(tokenizer, embedding.num_embeddings)
    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad_id, eos_token_id=tokenizer.eos_token_id
    )
    model.eval()
    continuations: list[list[int]] = []
    with without_settings(model):
        for chunk in prompt_batches(model, prompts, pad_id, min(batch, most)):
            own = prompts[len(continuations) : len(continuations) + len(chunk.input_ids)]
            noise = None if drawing is None else [drawing.noise(own)]
            output = model.generate(  # type: ignore[operator]  # transformers types it as a Tensor
                **chunk._asdict(), generation_config=settings, logits_processor=noise
            )
            tail = output[:, chunk.input_ids.shape[1] :].tolist()
            continuations += [_until(row, tokenizer.eos_token_id) for row in tail]
    return continuations


@contextmanager
def without_settings(model: PreTrainedModel) -> Iterator[None]:
    """Take the checkpoint's generation settings away from a model, from which `generate` fills what it is not told."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def overruled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a checkpoint's generation settings that would change an answer.

    Args:
        settings: settings as `generation_config.json` has them, or a `config.json` with others beside them.
    """
    return {
        name: settings[name]
        for name, plain in NEUTRAL.items()
        if settings.get(name) is not None and settings[name] != plain
    }


def cache_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of the keys and values of one token, float32."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return 8 * int(config.num_hidden_layers * kept * width)


def prompt_batches(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, batch: int
) -> Iterator[Prompts]:
    """Yield the prompts in order, with keys and values of their common beginning where the model can reuse them.

    Each row then reads: beginning, padding, rest. Masked and with the positions that `generate` counts by the mask, it
    means the same as padding before the beginning, and logits differ by rounding alone.
    """
    length = shared_length(prompts)
    cache = beginning(model, prompts[0][:length]) if length else None
    front = torch.tensor([] if cache is None else prompts[0][:length], dtype=torch.long, device=model.device)
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        rest = pad([row[len(front) :] for row in rows], pad_id, left=True).on(model.device)
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
    model(
        input_ids=torch.tensor([list(tokens)], device=model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache


def _until(tokens: list[int], end: int | None) -> list[int]:
    return tokens[: tokens.index(end)] if end is not None and end in tokens else tokens
