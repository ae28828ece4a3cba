"""The arms of a run: an unlearning method, and in what its model is kept from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from unforgotten.experiments.arms.arithmetic import Arithmetic
from unforgotten.experiments.arms.products import resolve
from unforgotten.experiments.compute.device import device_of
from unforgotten.experiments.config import Products, RunConfig, Storage
from unforgotten.experiments.own import label_of

Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class Kept:
    """What one storage arm keeps: parameters, gradients and moments, all in one dtype, and how a step is rounded to it."""

    dtype: torch.dtype
    rounding: Rounding

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtypes by name, as the rows record them."""
        name = str(self.dtype).removeprefix("torch.")
        master = name if self.dtype == torch.float32 else "none"
        return {"parameters": name, "master": master, "moments": name, "checkpoint": name}


KEPT: Mapping[Storage, Kept] = {
    "fp32": Kept(torch.float32, "nearest"),
    "bf16": Kept(torch.bfloat16, "nearest"),
    "bf16-sr": Kept(torch.bfloat16, "stochastic"),
}
TRAINED = KEPT["fp32"].dtypes | {"checkpoint": "bfloat16"}
"""Dtypes of the target and of the retrained model."""


@dataclass(frozen=True)
class Arm:
    """One unlearned model: a method, by its name or a reference to one's own, in a storage arm."""

    method: str
    storage: Storage

    @property
    def label(self) -> str:
        """Name of the method in rows and folders."""
        return label_of(self.method)

    @property
    def name(self) -> str:
        """Folder name below `models/`."""
        return f"unlearned-{self.label}-{self.storage}"

    @property
    def title(self) -> str:
        """Name of the arm in what progress says."""
        return f"{self.label} {self.storage}"

    @property
    def kept(self) -> Kept:
        """What its storage arm keeps."""
        return KEPT[self.storage]

    def arithmetic(self, config: RunConfig) -> Arithmetic:
        """Return how the arm computes; mixed precision is for float32 parameters alone."""
        autocast = config.unlearning.autocast if self.storage == "fp32" else "none"
        return Arithmetic(self.kept.dtype, autocast, products_of(config))


def products_of(config: RunConfig) -> Products:
    """Return how bfloat16 matrices are multiplied on the device of a run."""
    return resolve(config.bf16_products, device_of(config.compute).type)


def arms(config: RunConfig) -> list[Arm]:
    """Return the unlearned models of a run, in order."""
    return [Arm(m, s) for m in config.methods for s in config.storages]
