"""LoRA: a pair of a forget and a retain term that moves low-rank factors beside the linear layers, merged at the end.

W = W_0 + (lora_alpha / rank) B A, A and B in the arm's dtype, B from 0. Merged, W is rounded to the arm's dtype, to nearest. Needs
the package peft.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unforgotten.experiments.methods.ga import GA
from unforgotten.experiments.methods.npo import NPO
from unforgotten.experiments.methods.retain import RETAIN_TERMS
from unforgotten.experiments.methods.terms import LossMethod, by_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.literature.settings import LoraConfig
    from unforgotten.experiments.methods.method import Outcome, Task


@dataclass(frozen=True)
class LoraMethod:
    """LoRA around a pair of terms. A `Method`."""

    base: LossMethod

    @property
    def name(self) -> str:
        """Name of the pair, and LoRA."""
        return f"{self.base.name}_LoRA"

    @property
    def statement(self) -> str:
        """What it does."""
        return f"{self.base.statement}; moves low-rank factors alone, merged at the end"

    @property
    def source(self) -> str:
        """Where LoRA and the terms are from."""
        return f"Hu et al. 2022, arXiv 2106.09685, by peft; {self.base.source}"

    @property
    def settings(self) -> type[LoraConfig]:
        """Type of what a profile may set for it."""
        from unforgotten.experiments.methods.literature.settings import LoraConfig

        return LoraConfig

    def unlearn(self, model: PreTrainedModel, task: Task, settings: LoraConfig) -> Outcome:
        """Descend the losses of the pair in the factors, and merge them.

        Raises:
            ValueError: peft is missing.
        """
        from unforgotten.records.extras import need

        need("unforgotten[lora]", "peft")
        import peft
        import torch

        from unforgotten.experiments.methods.method import not_plain
        from unforgotten.experiments.models.scoring import mean_loss

        needed = {name: p.requires_grad for name, p in model.named_parameters()}
        torch.manual_seed(task.seed)
        factors = peft.LoraConfig(r=settings.rank, lora_alpha=settings.lora_alpha, target_modules="all-linear")
        injected = peft.get_peft_model(model, factors)
        outcome = not_plain(self.base.descend(model, task, settings))
        injected.merge_and_unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(needed[name])
        with task.arithmetic.computing():
            loss = mean_loss(model, task.watched, 4 * task.common.batch)
        return replace(outcome, forget_loss=loss)


METHODS = tuple(LoraMethod(by_loss(forget, retain)) for forget in (GA, NPO) for retain in RETAIN_TERMS)
