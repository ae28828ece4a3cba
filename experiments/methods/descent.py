"""The unlearning loop: AdamW on a forget term and a retain term, in one of three storage arms.

"fp32": parameters and optimizer state are float32, the master copy of mixed-precision training.
"bf16": parameters, gradients and optimizer state are bfloat16 and nothing else exists, as in the released code.
"bf16-sr": the same, but every result of a step is rounded to bfloat16 at random, so that its mean is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import autocast
from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.compute.checkpointing import checkpointed
from unforgotten.experiments.compute.parts import Mean
from unforgotten.experiments.compute.processes import ALONE, Processes, Worker, processes
from unforgotten.experiments.methods.method import Outcome, Task
from unforgotten.experiments.methods.optimizers import make_optimizer
from unforgotten.experiments.methods.reference import Reference
from unforgotten.experiments.methods.settings import Settings
from unforgotten.experiments.methods.steps import Losses, PlainStep, Step
from unforgotten.experiments.methods.terms import Term
from unforgotten.experiments.methods.view import View
from unforgotten.experiments.methods.waypoints import Waypoints
from unforgotten.experiments.models.batches import Batch, shuffled_batches
from unforgotten.experiments.models.scoring import batches_of, mean_loss

Loss = Callable[[Batch], Tensor]


def descend(
    model: PreTrainedModel,
    forget: Term,
    retain: Term | None,
    settings: Settings,
    task: Task,
    step_of: Step | None = None,
    means: tuple[Mean | None, Mean | None] = (None, None),
) -> Outcome:
    """Unlearn in place, starting from the target's weights.

    Processes of one launch share the documents of each batch where both losses say what they are means over, steps are
    `PlainStep`s, and nothing is rounded at random that is shared out; else each computes all of it. All end with the same weights.

    Args:
        model: copy of the target, float32; converted to the arm's dtype here.
        forget: loss of a forget batch.
        retain: loss of a retain batch, `settings.alpha` times of which is added; None for none.
        settings: settings, see `settings_of`.
        task: documents, how to compute, and the depths at which weights are kept.
        step_of: what a step passes back and changes; None for a `PlainStep`.
        means: what the forget loss and the retain loss are means over; None for one that is computed for whole batches alone.
    """
    around = PlainStep() if step_of is None else step_of
    reference = task.reference(model)
    torch.manual_seed(task.seed)
    arithmetic = task.arithmetic
    arithmetic.cast(model)
    together = _together(around, retain, means, task)
    worker = Worker(model, lambda m: make_optimizer(m, settings, task), together, settings.max_grad_norm)
    given, model, optimizer = model, worker.model, worker.optimizer
    losses_of = _Losses(worker, forget, retain, settings, reference, means, task.compute.micro_batch)
    around.begin(model, lambda: _forget_gradients(losses_of, task))
    pad_id = model.config.pad_token_id or 0
    forget_batches = shuffled_batches(task.forget, settings.batch, pad_id, task.seed)
    beside, seed = (len(task.forget), task.seed) if task.paired else (None, task.seed + 1)
    retain_batches = shuffled_batches(task.retain, settings.retain_batch, pad_id, seed, beside=beside)

    def watched() -> float:
        with arithmetic.computing():
            loss = mean_loss(model, task.watched, 4 * settings.batch)
        return together.agreed(lambda: loss)

    loss_now = watched()
    waypoints = Waypoints(task.goals, task.common.keep, settings.check_every, worker.weights)
    waypoints.see(0, loss_now)
    step, stopped = 0, "max_steps"
    while step < settings.max_steps:
        step += 1
        kept = None if retain is None else next(retain_batches)
        with arithmetic.computing(), checkpointed(model, enabled=task.compute.gradient_checkpointing):
            around.gradients(model, losses_of(next(forget_batches), kept))
        worker.clip()
        task.before_step(model, settings.lr)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        around.end(model)
        if waypoints.due(step) or step == settings.max_steps:
            loss_now = watched()
            waypoints.see(step, loss_now)
        task.progress(step, settings.max_steps, f"forget loss {loss_now:.2f}")
        if waypoints.done or (not task.goals and loss_now >= settings.stop_forget_loss):
            stopped = "goals" if task.goals else "forget_loss"
            break
    reached, missed = waypoints.end(stopped)
    worker.finish()
    given.eval()
    return Outcome(step, stopped, loss_now, settings.recorded(), reached, missed)


def _together(around: Step, retain: Term | None, means: tuple[Mean | None, Mean | None], task: Task) -> Processes:
    """Return the processes that share the work: those of the launch, or this one alone."""
    together, random = processes(), KEPT[task.storage].rounding == "stochastic"
    whole = means[0] is None or (retain is not None and means[1] is None) or type(around) is not PlainStep
    return ALONE if whole or (random and together.averages) else together


@dataclass(frozen=True)
class _Losses:
    """The losses of a pair of batches, as `Losses`."""

    worker: Worker
    forget: Term
    retain: Term | None
    settings: Settings
    reference: Reference
    means: tuple[Mean | None, Mean | None]
    micro_batch: int | None

    def __call__(self, forgotten: Batch, kept: Batch | None) -> Losses:
        forget = self._parts(self._forget_loss, forgotten, self.means[0])
        retain = [] if kept is None else self._parts(self._retain_loss, kept, self.means[1])

        def both() -> tuple[Tensor, Tensor]:
            with self._autocast():
                loss = _total(forget)
                return loss, loss + _total(retain) if retain else loss

        def descend() -> None:
            if self.worker.once or max(len(forget), len(retain)) == 1:
                self.worker.backward(both()[1])
                return
            for part in (*forget, *retain):
                self.worker.backward(part())

        alone = (lambda: _total(retain)) if retain else None
        return Losses(lambda: _total(forget), alone, both, self.worker.backward, descend)

    def _parts(self, loss: Loss, batch: Batch, mean: Mean | None) -> list[Callable[[], Tensor]]:
        """Return functions whose sum is the loss of the batch, or this process's share of it."""

        def scaled(part: Batch, share: float) -> Tensor:
            with self._autocast():
                return loss(part) if share == 1.0 else share * loss(part)

        return [partial(scaled, *part) for part in self.worker.parts(batch, mean, self.micro_batch)]

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.settings.autocast, self.worker.model.device)

    def _forget_loss(self, batch: Batch) -> Tensor:
        return self.forget(View(self.worker.model, batch, self.reference.forget), self.settings)

    def _retain_loss(self, batch: Batch) -> Tensor:
        if self.retain is None:
            raise ValueError("retain must be a term where there is a retain batch, got None")
        return self.settings.alpha * self.retain(View(self.worker.model, batch, self.reference.retain), self.settings)


def _total(parts: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Return the sum of parts; of several, the activations of each are computed again in the backward pass, one after the other."""
    if len(parts) == 1:
        return parts[0]()
    return torch.stack([checkpoint(part, use_reentrant=False) for part in parts]).sum()


def _forget_gradients(losses_of: _Losses, task: Task) -> dict[str, Tensor]:
    """Return the gradient of the mean over the forget set of the forget loss, each batch by its share of documents."""
    model = losses_of.worker.model
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
