"""The unlearning loop: AdamW on a forget term and a retain term, in one of three storage arms.

"fp32": parameters and optimizer state are float32, the master copy of mixed-precision training.
"bf16": parameters, gradients and optimizer state are bfloat16 and nothing else exists, as in the released code.
"bf16-sr": the same, but every result of a step is rounded to bfloat16 at random, so that its mean is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import autocast
from unforgotten.experiments.methods.method import Outcome, Task
from unforgotten.experiments.methods.optimizers import make_optimizer
from unforgotten.experiments.methods.reference import Reference
from unforgotten.experiments.methods.settings import Settings
from unforgotten.experiments.methods.steps import Losses, PlainStep, Step
from unforgotten.experiments.methods.terms import Term
from unforgotten.experiments.methods.view import View
from unforgotten.experiments.models.batches import Batch, shuffled_batches
from unforgotten.experiments.models.scoring import batches_of, mean_loss


def descend(
    model: PreTrainedModel,
    forget: Term,
    retain: Term | None,
    settings: Settings,
    task: Task,
    step_of: Step | None = None,
) -> Outcome:
    """Unlearn in place, starting from the target's weights.

    Args:
        model: copy of the target, float32; converted to the arm's dtype here.
        forget: loss of a forget batch.
        retain: loss of a retain batch, `settings.alpha` times of which is added; None for none.
        settings: settings, see `settings_of`.
        task: documents, and how to compute.
        step_of: what a step passes back and changes; None for a `PlainStep`.
    """
    around = PlainStep() if step_of is None else step_of
    reference = task.reference(model)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(task.seed)
    arithmetic = task.arithmetic
    arithmetic.cast(model)
    optimizer = make_optimizer(model, settings, task)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses_of = _Losses(model, forget, retain, settings, reference, accelerator)
    around.begin(model, lambda: _forget_gradients(losses_of, task))
    pad_id = model.config.pad_token_id or 0
    forget_batches = shuffled_batches(task.forget, settings.batch, pad_id, task.seed)
    beside, seed = (len(task.forget), task.seed) if task.paired else (None, task.seed + 1)
    retain_batches = shuffled_batches(task.retain, settings.retain_batch, pad_id, seed, beside=beside)
    with arithmetic.computing():
        loss_now = mean_loss(model, task.watched, 4 * settings.batch)
    step, stopped = 0, "max_steps"
    while step < settings.max_steps:
        step += 1
        kept = None if retain is None else next(retain_batches)
        with arithmetic.computing():
            around.gradients(model, losses_of(next(forget_batches), kept))
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        task.before_step(model, settings.lr)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        around.end(model)
        if step % settings.check_every == 0 or step == settings.max_steps:
            with arithmetic.computing():
                loss_now = mean_loss(model, task.watched, 4 * settings.batch)
        task.progress(step, settings.max_steps, f"forget loss {loss_now:.2f}")
        if loss_now >= settings.stop_forget_loss:
            stopped = "forget_loss"
            break
    model.eval()
    return Outcome(step, stopped, loss_now, settings.recorded())


@dataclass(frozen=True)
class _Losses:
    """The losses of a pair of batches, as `Losses`."""

    model: PreTrainedModel
    forget: Term
    retain: Term | None
    settings: Settings
    reference: Reference
    accelerator: Accelerator

    def __call__(self, forgotten: Batch, kept: Batch | None) -> Losses:
        def both() -> tuple[Tensor, Tensor]:
            with autocast(self.settings.autocast):
                loss = self._forget_loss(forgotten)
                return loss, loss if kept is None else loss + self._retain_loss(kept)

        def of(loss: Callable[[Batch], Tensor], batch: Batch) -> Callable[[], Tensor]:
            def alone() -> Tensor:
                with autocast(self.settings.autocast):
                    return loss(batch)

            return alone

        retain = None if kept is None else of(self._retain_loss, kept)
        return Losses(of(self._forget_loss, forgotten), retain, both, self.accelerator.backward)

    def _forget_loss(self, batch: Batch) -> Tensor:
        return self.forget(View(self.model, batch, self.reference.forget), self.settings)

    def _retain_loss(self, batch: Batch) -> Tensor:
        if self.retain is None:
            raise ValueError("retain must be a term where there is a retain batch, got None")
        return self.settings.alpha * self.retain(View(self.model, batch, self.reference.retain), self.settings)


def _forget_gradients(losses_of: _Losses, task: Task) -> dict[str, Tensor]:
    """Return the gradient of the mean over the forget set of the forget loss, each batch by its share of documents."""
    model = losses_of.model
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in model.named_parameters()}
    for batch in batches_of(model, task.forget, losses_of.settings.batch):
        losses = losses_of(batch, None)
        with task.arithmetic.computing():
            losses.backward(losses.forget())
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] += parameter.grad.float() * (len(batch.documents) / len(task.forget))
        model.zero_grad(set_to_none=True)
    return total
