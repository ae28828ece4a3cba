"""A mixture of experts of random weights, with a router. Source: Jiang et al. 2024, Mixtral of experts, arXiv 2401.04088."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.models.bases.scratch import SPECIAL, Scratch, Shape

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
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            num_local_experts=config.experts,
            num_experts_per_tok=config.experts_per_token,
            max_position_embeddings=shape.positions,
            sliding_window=None,
            tie_word_embeddings=True,
            **SPECIAL,
        )
    )


BASES = (
    Scratch(
        "moe", "a Mixtral of 8 experts and 5 million weights, trained here", Shape(2048, 192, 192, 4, 4, 512), mixture
    ),
)
