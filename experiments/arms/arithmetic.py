"""How a model computes while it is trained: in which dtype its parameters are, and how bfloat16 matrices are multiplied."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import get_args

import torch
from transformers import PreTrainedModel

from unforgotten.experiments.arms.products import products
from unforgotten.experiments.config import Autocast, Products


@dataclass(frozen=True)
class Arithmetic:
    """Two arms of equal arithmetic give the target equal log-probabilities, so they share one reference.

    Attributes:
        parameters: dtype of the parameters.
        autocast: dtype of the losses: "bf16" computes them in bfloat16 though the parameters are float32.
        products: method of multiplying bfloat16 matrices, where there are any.
    """

    parameters: torch.dtype
    autocast: Autocast
    products: Products

    @property
    def in_float32(self) -> bool:
        """Whether no bfloat16 matrix is ever multiplied."""
        return self.parameters == torch.float32 and self.autocast == "none"

    @property
    def products_name(self) -> str:
        """How matrices are multiplied, in words, as the rows record it."""
        if self.in_float32:
            return "float32"
        return {"native": "native bfloat16", "float32": "float32 rounded to bfloat16"}[self.products]

    def cast(self, model: PreTrainedModel) -> None:
        """Convert the parameters in place, and nothing else: the frequencies of positions stay float32.

        transformers leaves them so in a model that it loads in bfloat16. Rounded, they turn the queries and keys of
        late positions by up to 0.4 % too much or too little.
        """
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.parameters)

    def computing(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of forward and backward passes; `autocast` belongs around the losses alone."""
        return contextlib.nullcontext() if self.in_float32 else products(self.products)


def autocast(mode: Autocast, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Compute in bfloat16 on a device, or as the parameters are; the parameters themselves keep their dtype.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in get_args(Autocast):
        raise ValueError(f"mode must be one of {', '.join(get_args(Autocast))}, got mode={mode!r}")
    if mode == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
