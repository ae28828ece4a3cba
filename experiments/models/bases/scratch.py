"""Bases of random weights: an architecture of transformers in a size that a CPU trains, with a tokenizer of the run's own text.

BASES = (Scratch("tiny-llama", "a Llama of 2 million weights", Shape(2048, 192, 512, 4, 4, 512), llama),)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import BaseConfig


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, named as in `BaseConfig`."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    positions: int

    @property
    def named(self) -> dict[str, Any]:
        """The sizes as configurations of transformers name them, with the special tokens of `train_tokenizer`."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.positions,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


@dataclass(frozen=True)
class Scratch:
    """An architecture with random weights. A `Base`.

    Attributes:
        name: name in profiles.
        statement: what it is.
        shape: sizes where the profile sets none.
        build: function that makes the model of a shape; `BaseConfig` is for what only one architecture has.
    """

    name: str
    statement: str
    shape: Shape
    build: Callable[[Shape, BaseConfig], PreTrainedModel]

    @property
    def trained(self) -> bool:
        """False: the run trains it."""
        return False

    def make(self, config: BaseConfig, texts: Sequence[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """Return the model with random weights, and a tokenizer trained on the texts.

        Raises:
            ValueError: there are no texts, or the heads do not divide the width.
        """
        from unforgotten.experiments.models.tokenizer import train_tokenizer

        if not texts:
            raise ValueError(f"corpus.kind must be fiction for base.kind {self.name}, got one without general text")
        return self.model(config, seed), train_tokenizer(texts, self.shape_of(config).vocabulary)

    def model(self, config: BaseConfig, seed: int) -> PreTrainedModel:
        """Return the model with random weights, float32.

        Raises:
            ValueError: the heads do not divide the width.
        """
        import torch

        shape = self.shape_of(config)
        if shape.width % (2 * shape.heads):
            raise ValueError(
                f"base.width must be a multiple of twice base.heads={shape.heads}, got base.width={shape.width}"
            )
        torch.manual_seed(seed)
        model = self.build(shape, config)
        model.set_attn_implementation("eager")  # its backward is the faster on CPUs
        return model

    def shape_of(self, config: BaseConfig) -> Shape:
        """Return the sizes that the profile sets, and those of this base where it sets none."""
        given = {f.name: getattr(config, f.name) for f in fields(Shape)}
        own = {f.name: getattr(self.shape, f.name) for f in fields(Shape)}
        return Shape(**{name: own[name] if size is None else size for name, size in given.items()})
