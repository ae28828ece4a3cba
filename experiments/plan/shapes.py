"""The sizes of a run's model, from its configuration: no weights are made or read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.models.bases.registry import BASES
from unforgotten.experiments.models.bases.scratch import Scratch
from unforgotten.experiments.models.saved import check_loadable
from unforgotten.experiments.plan.known import BASES as KNOWN_BASES
from unforgotten.experiments.plan.known import REPOSITORIES, Known

HUB = "hub:"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        title: name or place of the model.
        source: where the sizes are from.
        parameters: number of weights, tied ones once.
        looked_up: number of weights of an embedding that is not the output layer too: no product is made with them.
        layers, width, heads: number of decoder layers, width of a hidden state, heads of attention.
        key_width: numbers that a layer keeps of each token, keys and values together.
        vocabulary: number of logits.
        stored: bytes of a weight in the files of a model that is given.
        positions: longest input in tokens; 0 where the model does not say.
    """

    title: str
    source: str
    parameters: int
    looked_up: int
    layers: int
    width: int
    heads: int
    key_width: int
    vocabulary: int
    stored: int
    positions: int = 0

    def products(self, length: float) -> float:
        """Return the floating-point operations of a forward pass by token, in documents of this mean length."""
        return 2.0 * (self.parameters - self.looked_up) + 2.0 * self.layers * self.width * length


def shape_of(config: RunConfig) -> Shape | None:
    """Return the sizes of the model that a run unlearns; None of one that is not here and not known.

    Raises:
        ValueError: a directory is no model that transformers loads, or the sizes break a rule of the base.
    """
    given = config.models.target
    if given is not None:
        repo = given.removeprefix(HUB).partition("@")[0]
        return _of_repository(repo) if given.startswith(HUB) else shape_of_directory(Path(given))
    base = config.base
    if base.kind == "directory" and base.path is not None:
        return shape_of_directory(base.path)
    if base.kind == "hub" and base.repo is not None:
        return _of_repository(base.repo)
    if base.kind in KNOWN_BASES:
        return _of_known(base.kind, KNOWN_BASES[base.kind])
    found = BASES.get(base.kind)
    if isinstance(found, Scratch):
        with torch.device("meta"):
            return _measured(found.model(base, 0), base.kind, "made of its sizes", 4)
    return None


def _of_repository(repo: str) -> Shape | None:
    known = REPOSITORIES.get(repo.lower())
    return None if known is None else _of_known(repo, known)


def _of_known(title: str, known: Known) -> Shape:
    config = AutoConfig.for_model(known.kind, **known.sizes)
    return _measured(_without_weights(config), title, f"published sizes of {known.title}", known.stored)


def shape_of_directory(folder: Path) -> Shape:
    """Return the sizes of a model's directory, from its configuration.

    Raises:
        ValueError: it is no model that transformers loads.
    """
    config: Any = check_loadable(folder)
    dtype = getattr(config, "dtype", None)
    stored = dtype.itemsize if isinstance(dtype, torch.dtype) else 4
    return _measured(_without_weights(config), str(folder), "its config.json", stored)


def _without_weights(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _measured(model: PreTrainedModel, title: str, source: str, stored: int) -> Shape:
    config: Any = model.config.get_text_config()
    head, embedding = model.get_output_embeddings(), cast(Any, model.get_input_embeddings())
    tied = head is not None and head.weight is embedding.weight
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return Shape(
        title=title,
        source=source,
        parameters=sum(p.numel() for p in model.parameters()),
        looked_up=0 if tied else embedding.weight.numel(),
        layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        heads=heads,
        key_width=2 * keys * head_width,
        vocabulary=int(config.vocab_size if head is None else head.weight.shape[0]),
        stored=stored,
        positions=int(getattr(config, "max_position_embeddings", 0) or 0),
    )
