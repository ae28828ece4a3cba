"""The optimizer of a storage arm: what moves the parameters, in the dtype in which the arm keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.arms.stochastic_rounding import StochasticAdamW

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.method import Task
    from unforgotten.experiments.methods.settings import Settings


def make_optimizer(model: PreTrainedModel, settings: Settings, task: Task) -> torch.optim.Optimizer:
    """Return AdamW without weight decay; where the arm rounds stochastically, one that does.

    Args:
        model: model in the arm's dtype; what needs no gradient is left out.
        settings: settings with the learning rate.
        task: task with the arm, and the seed of its random bits.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if KEPT[task.storage].rounding == "stochastic":
        return StochasticAdamW(parameters, settings.lr, task.seed + 2)  # seed, seed + 1: the documents
    return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=0.0)
