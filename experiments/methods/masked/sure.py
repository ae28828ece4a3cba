"""SURE: a pair of a forget and a retain term that moves only the parts of the model which the forget loss leans on.

theta = theta_0 + m * (theta' - theta_0), m_i = 1[s_i >= gamma], s_i the norm of the gradient of the forget loss on part i and
gamma a percentile of them. With the mask "module", as the paper has it, the norms are those at theta_0 over the whole forget set;
"layer" and "neuron" are the same with other parts. "row" takes the gradient of each step's batch, as the released code means to.

A gradient of 0 does not stop AdamW, whose first moment moves what was salient before: what is masked is put back, bit for bit.
The paper takes a larger learning rate than for the pair alone, 1e-4 against 1e-5: `lr` sets it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from unforgotten.experiments.methods.ga import GA
from unforgotten.experiments.methods.method import not_plain
from unforgotten.experiments.methods.npo import NPO
from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.terms import LossMethod, by_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.masked.saliency import Part
    from unforgotten.experiments.methods.masked.settings import SureConfig
    from unforgotten.experiments.methods.method import Outcome, Task
    from unforgotten.experiments.methods.steps import ForgetGradients, Losses

PAPER = "Zhang et al. 2025, arXiv 2410.16454, eq. 4-6"


class SureStep:
    """Moves the salient parts alone.

    Args:
        part: kind of the parts; "row" finds them anew in every step, any other once, at the target's weights.
        threshold: percentile of the norms below which a part is masked.
    """

    def __init__(self, part: Part, threshold: float) -> None:
        self._part: Part = part
        self._threshold = threshold
        self._masks: dict[str, Tensor] = {}
        self._moved: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def begin(self, model: PreTrainedModel, forget_gradients: ForgetGradients) -> None:
        """Find the mask over the whole forget set, unless it is found in every step."""
        if self._part != "row":
            self._find(forget_gradients())

    def gradients(self, model: PreTrainedModel, losses: Losses) -> None:
        """Pass back the sum, with a gradient of 0 on what is masked, and keep the masked weights."""
        import torch

        from unforgotten.experiments.methods.masked.saliency import on

        forget, total = losses.both()
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if self._part == "row":
            found = torch.autograd.grad(forget, list(named.values()), retain_graph=True, materialize_grads=True)
            self._find(dict(zip(named, found, strict=True)))
        losses.backward(total)
        self._before = {}
        for name, parameter in named.items():
            if bool(self._masks[name].all()):
                continue
            self._before[name] = parameter.detach().clone()
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~on(self._masks[name], parameter), 0.0)

    def end(self, model: PreTrainedModel) -> None:
        """Put the masked weights back."""
        import torch

        from unforgotten.experiments.methods.masked.saliency import on

        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, before in self._before.items():
                named[name].copy_(torch.where(on(self._masks[name], before), named[name], before))

    def _find(self, gradients: Mapping[str, Tensor]) -> None:
        from unforgotten.experiments.methods.masked.saliency import salient

        self._masks = salient(gradients, self._part, self._threshold)
        self._moved = {name: mask | self._moved.get(name, mask) for name, mask in self._masks.items()}

    def updated_share(self, model: PreTrainedModel) -> float:
        """Return the share of the weights that the mask let move, in any step where it is found in each."""
        weights = {name: p for name, p in model.named_parameters() if name in self._moved}
        moved = sum(float(self._moved[name].double().mean()) * p.numel() for name, p in weights.items())
        return moved / sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class SureMethod:
    """SURE around a pair of terms. A `Method`."""

    base: LossMethod
    keeps_states: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the pair, and SURE."""
        return f"{self.base.name}_SURE"

    @property
    def statement(self) -> str:
        """What it does."""
        return f"{self.base.statement}; moves only what the forget loss leans on"

    @property
    def source(self) -> str:
        """Where the mask and the terms are from."""
        return f"{PAPER}; {self.base.source}"

    @property
    def settings(self) -> type[SureConfig]:
        """Type of what a profile may set for it."""
        from unforgotten.experiments.methods.masked.settings import SureConfig

        return SureConfig

    def unlearn(self, model: PreTrainedModel, task: Task, settings: SureConfig) -> Outcome:
        """Descend the losses of the pair on what is salient."""
        step = SureStep(settings.mask, settings.threshold)
        outcome = not_plain(self.base.descend(model, task, settings, step))
        mask = {"updated_share": step.updated_share(model), "mask_threshold": settings.threshold}
        return replace(outcome, settings={**outcome.settings, **mask})


METHODS = tuple(SureMethod(by_loss(forget, retain)) for forget in (GA, NPO) for retain in RETAIN_TERMS)
