"""Saliency: how much the forget loss leans on a part of a model, and which parts are above a percentile.

In go gradients by parameter, out comes a mask by parameter, True on what may move:

    salient(gradients, "module", 90.0)  # {"model.layers.0.mlp.up_proj.weight": tensor(True), …}

A part is a module (what holds parameters itself, a linear layer say), a decoder layer, or a row of one parameter: the first axis
of a matrix, a single entry of a vector. A neuron is a row of a module: that of its weight with the entry of its bias.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Part = Literal["module", "row", "neuron", "layer"]

LAYER = re.compile(r"^(.*?\.\d+)\.")
"""A parameter's name up to the first number in it, which is that of its decoder layer."""


def salient(gradients: Mapping[str, Tensor], part: Part, threshold: float) -> dict[str, Tensor]:
    """Return m_i = 1[s_i >= gamma], s_i the norm of the gradient on part i, gamma the percentile of all s.

    Args:
        gradients: gradients by name of the parameter.
        part: kind of the parts.
        threshold: percentile, 0 to below 100, interpolated linearly; 0 takes every part.

    Returns:
        For each parameter a boolean, (rows,) where parts are rows or neurons, else ().
    """
    norms = part_norms(gradients, part)
    pooled = np.concatenate([s.reshape(-1).numpy() for s in norms.values()])
    least = float(np.percentile(pooled, threshold))
    return {name: (norms[PARTS[part](name)] >= least).to(g.device) for name, g in gradients.items()}


def part_norms(gradients: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """Return the Euclidean norm of the gradient on each part, float64: (rows,) or () by name of the group.

    Raises:
        ValueError: the part is unknown, or the parameters of a module differ in their number of rows.
    """
    if part not in get_args(Part):
        raise ValueError(f"mask must be one of {', '.join(get_args(Part))}, got mask={part!r}")
    squares: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        own = gradient.detach().cpu().double().square()
        own = own.reshape(len(own), -1).sum(1) if part in ("row", "neuron") else own.sum()
        group = PARTS[part](name)
        other = squares.get(group, torch.zeros_like(own))
        if other.shape != own.shape:
            raise ValueError(f"{group}: its parameters must have one number of rows, got {len(other)} and {len(own)}")
        squares[group] = other + own
    return {group: s.sqrt() for group, s in squares.items()}


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name


def _layer(name: str) -> str:
    found = LAYER.match(name)
    return found[1] if found else _module(name)


PARTS: Mapping[Part, Callable[[str], str]] = {"module": _module, "row": str, "neuron": _module, "layer": _layer}
"""The group that a parameter belongs to, by name. What is in no decoder layer is a layer of its own, by module."""


def on(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask as `salient` gives it in a shape that broadcasts against its parameter."""
    return mask.reshape(-1, *(1 for _ in weight.shape[1:])) if mask.ndim else mask
