"""A GPT-NeoX of random weights: biases, LayerNorm, one matrix for queries, keys and values, attention beside the feed-forward.

Source: Black et al. 2022, arXiv 2204.06745; the architecture of Pythia.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.models.bases.scratch import Scratch, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig


def gpt_neox(shape: Shape, config: BaseConfig) -> PreTrainedModel:
    """Return a GPT-NeoX whose output head is not tied, as Pythia's is not."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**shape.named))


BASES = (
    Scratch("gpt-neox", "a GPT-NeoX of 3 million weights, trained here", Shape(2048, 192, 768, 4, 4, 512), gpt_neox),
)
