"""The unlearning loop: AdamW on a forget term and a retain term, in one of three storage arms.

"fp32": parameters and optimizer state are float32, the master copy of mixed-precision training.
"bf16": parameters, gradients and optimizer state are bfloat16 and nothing else exists, as in the released code.
"bf16-sr": the same, but every result of a step is rounded to bfloat16 at random, so that its mean is right.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import autocast
from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.arms.stochastic_rounding import StochasticAdamW
from unforgotten.experiments.config import Storage
from unforgotten.experiments.methods.method import Outcome, Task
from unforgotten.experiments.methods.settings import Settings
from unforgotten.experiments.methods.terms import Term
from unforgotten.experiments.methods.view import View
from unforgotten.experiments.models.batches import shuffled_batches
from unforgotten.experiments.models.scoring import mean_loss


def descend(model: PreTrainedModel, forget: Term, retain: Term | None, settings: Settings, task: Task) -> Outcome:
    """Unlearn in place, starting from the target's weights.

    Args:
        model: copy of the target, float32; converted to the arm's dtype here.
        forget: loss of a forget batch.
        retain: loss of a retain batch, `settings.alpha` times of which is added; None for none.
        settings: settings, see `settings_of`.
        task: documents, and how to compute.
    """
    reference = task.reference(model)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(task.seed)
    arithmetic = task.arithmetic
    arithmetic.cast(model)
    optimizer = _optimizer(model, settings.lr, task.storage, task.seed)
    model, optimizer = accelerator.prepare(model, optimizer)
    pad_id = model.config.pad_token_id or 0
    forget_batches = shuffled_batches(task.forget, settings.batch, pad_id, task.seed)
    retain_batches = shuffled_batches(task.retain, settings.retain_batch, pad_id, task.seed + 1)
    with arithmetic.computing():
        loss_now = mean_loss(model, task.watched, 4 * settings.batch)
    step, stopped = 0, "max_steps"
    while step < settings.max_steps:
        step += 1
        with arithmetic.computing():
            with autocast(settings.autocast):
                loss = forget(View(model, next(forget_batches), reference.forget), settings)
                if retain is not None:
                    kept = retain(View(model, next(retain_batches), reference.retain), settings)
                    loss = loss + settings.alpha * kept
            accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        task.before_step(model, settings.lr)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % settings.check_every == 0 or step == settings.max_steps:
            with arithmetic.computing():
                loss_now = mean_loss(model, task.watched, 4 * settings.batch)
        task.progress(step, settings.max_steps, f"forget loss {loss_now:.2f}")
        if loss_now >= settings.stop_forget_loss:
            stopped = "forget_loss"
            break
    model.eval()
    return Outcome(step, stopped, loss_now, asdict(settings))


def _optimizer(model: PreTrainedModel, lr: float, storage: Storage, seed: int) -> torch.optim.Optimizer:
    if KEPT[storage].rounding == "stochastic":
        return StochasticAdamW(model.parameters(), lr, seed + 2)  # seed, seed + 1: the documents
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
