"""Straight-through training: the losses of the quantized model, their gradients applied to the weights that are kept.

In every step a format is drawn, the linear layers compute with Q(w), and dQ/dw is taken as 1. Between steps the weights are what
the arm keeps, bit for bit what the optimizer left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.methods.ga import GA
from unforgotten.experiments.methods.npo import NPO
from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.robust.wrapped import WrappedMethod
from unforgotten.experiments.methods.terms import by_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.method import Task
    from unforgotten.experiments.methods.robust.settings import StraightThroughConfig
    from unforgotten.experiments.methods.steps import ForgetGradients, Losses


class StraightThroughStep:
    """Passes back the losses of a quantized model.

    Args:
        formats: names of formats, or "none", of which each step draws one.
        seed: seed of the draws.
    """

    def __init__(self, formats: Sequence[str], seed: int) -> None:
        import numpy as np

        self._formats, self._rng = tuple(formats), np.random.default_rng(seed)

    def begin(self, model: PreTrainedModel, forget_gradients: ForgetGradients) -> None:
        """Prepare nothing."""

    def gradients(self, model: PreTrainedModel, losses: Losses) -> None:
        """Quantize, pass the sum back, and put the weights back."""
        import torch

        from unforgotten.experiments.models.matrices.conv1d import conv1d_names, turned_matrix
        from unforgotten.experiments.models.shell import linear_names
        from unforgotten.experiments.quantizers.own import own_values

        name = self._formats[self._rng.integers(len(self._formats))]
        touched = set() if name == "none" else set(linear_names(model))
        weights = {key: p for key, p in model.named_parameters() if key in touched}
        kept = {key: p.detach().clone() for key, p in weights.items()}
        across = conv1d_names(model)
        with torch.no_grad():
            for key, parameter in weights.items():
                values = own_values(turned_matrix(parameter, key, across), name)
                parameter.copy_(turned_matrix(values, key, across))
        losses.backward(losses.both()[1])
        with torch.no_grad():
            for key, parameter in weights.items():
                parameter.copy_(kept[key])

    def end(self, model: PreTrainedModel) -> None:
        """Change nothing."""


def _config() -> type[StraightThroughConfig]:
    from unforgotten.experiments.methods.robust.settings import StraightThroughConfig

    return StraightThroughConfig


def _step(settings: StraightThroughConfig, task: Task) -> StraightThroughStep:
    return StraightThroughStep(settings.formats, task.seed + 3)  # seed … seed + 2: the documents, the rounding


HOW = "the losses of the quantized model, in a format drawn for each step"
PAPER = "Bengio et al. 2013, arXiv 1308.3432"
METHODS = tuple(
    WrappedMethod(by_loss(forget, retain), "STE", HOW, PAPER, _config, _step)
    for forget in (GA, NPO)
    for retain in RETAIN_TERMS
)
