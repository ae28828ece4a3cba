"""A Qwen3 of random weights: norms of queries and keys, heads in groups. Source: Qwen Team 2025, arXiv 2505.09388."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.models.bases.scratch import Scratch, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig


def qwen(shape: Shape, config: BaseConfig) -> PreTrainedModel:
    """Return a Qwen3 with half as many heads of keys and values as of queries, where that is a whole number."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            num_key_value_heads=shape.heads // 2 if shape.heads % 2 == 0 else shape.heads,
            head_dim=shape.width // shape.heads,
            tie_word_embeddings=True,
            **shape.named,
        )
    )


BASES = (Scratch("qwen", "a Qwen3 of 2 million weights, trained here", Shape(2048, 192, 512, 4, 4, 512), qwen),)
