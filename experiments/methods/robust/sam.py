"""SAM: the forget loss at the worst weights nearby, the retain loss at the weights themselves.

The step goes along grad L_forget(theta + rho g / |g|) + alpha grad L_retain(theta), g the gradient of the forget loss at theta, norms
over all weights together. In bfloat16 the perturbation is rounded like any weight: where it is below half a spacing, nothing of
it is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.methods.ga import GA
from unforgotten.experiments.methods.npo import NPO
from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.robust.wrapped import WrappedMethod
from unforgotten.experiments.methods.terms import by_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.method import Task
    from unforgotten.experiments.methods.robust.settings import SamConfig
    from unforgotten.experiments.methods.steps import ForgetGradients, Losses


class SamStep:
    """Takes the gradient of the forget loss at perturbed weights.

    Args:
        rho: length of the perturbation.
    """

    def __init__(self, rho: float) -> None:
        self._rho = rho

    def begin(self, model: PreTrainedModel, forget_gradients: ForgetGradients) -> None:
        """Prepare nothing."""

    def gradients(self, model: PreTrainedModel, losses: Losses) -> None:
        """Perturb, pass the forget loss back, put the weights back, and pass the retain loss back."""
        import torch

        parameters = [p for p in model.parameters() if p.requires_grad]
        kept = [p.detach().clone() for p in parameters]
        found = torch.autograd.grad(losses.forget(), parameters, materialize_grads=True)
        norm = torch.stack([g.float().square().sum() for g in found]).sum().sqrt()
        scale = self._rho / norm if norm > 0 else torch.zeros_like(norm)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.copy_(parameter.float() + scale * gradient.float())
        losses.backward(losses.forget())
        with torch.no_grad():
            for parameter, before in zip(parameters, kept, strict=True):
                parameter.copy_(before)
        if losses.retain is not None:
            losses.backward(losses.retain())

    def end(self, model: PreTrainedModel) -> None:
        """Change nothing."""


def _config() -> type[SamConfig]:
    from unforgotten.experiments.methods.robust.settings import SamConfig

    return SamConfig


def _step(settings: SamConfig, task: Task) -> SamStep:
    return SamStep(settings.rho)


HOW = "the forget loss at the worst weights nearby"
PAPER = "Foret et al. 2021, arXiv 2010.01412; for unlearning Fan et al. 2025, arXiv 2502.05374"
METHODS = tuple(
    WrappedMethod(by_loss(forget, retain), "SAM", HOW, PAPER, _config, _step)
    for forget in (GA, NPO)
    for retain in RETAIN_TERMS
)
