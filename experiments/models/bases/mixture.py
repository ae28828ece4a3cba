"""A mixture of experts of random weights, with a router. Source: Jiang et al. 2024, Mixtral of experts, arXiv 2401.04088."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.models.bases.scratch import Scratch, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig


def mixture(shape: Shape, config: BaseConfig) -> PreTrainedModel:
    """Return a Mixtral; `feed_forward` is the width of one expert.

    Raises:
        ValueError: a token goes to more experts than there are.
    """
    from transformers import MixtralConfig, MixtralForCausalLM

    if config.experts_per_token > config.experts:
        raise ValueError(
            f"base.experts_per_token must be at most base.experts={config.experts}, "
            f"got base.experts_per_token={config.experts_per_token}"
        )
    return MixtralForCausalLM(
        MixtralConfig(
            num_key_value_heads=shape.heads,
            num_local_experts=config.experts,
            num_experts_per_tok=config.experts_per_token,
            sliding_window=None,
            tie_word_embeddings=True,
            **shape.named,
        )
    )


BASES = (
    Scratch(
        "moe", "a Mixtral of 8 experts and 5 million weights, trained here", Shape(2048, 192, 192, 4, 4, 512), mixture
    ),
)
