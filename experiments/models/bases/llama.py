"""Llamas of random weights, with tied embeddings. Source: Touvron et al. 2023, arXiv 2302.13971."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.models.bases.scratch import Scratch, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig


def llama(shape: Shape, config: BaseConfig) -> PreTrainedModel:
    """Return a Llama without grouped heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=shape.heads, tie_word_embeddings=True, **shape.named))


TINY = Scratch("tiny-llama", "a Llama of 2 million weights, trained here", Shape(2048, 192, 512, 4, 4, 512), llama)
SMALL = Scratch("small-llama", "a Llama of 14 million weights, trained here", Shape(4096, 384, 1024, 7, 6, 512), llama)
BASES = (TINY, SMALL)
