"""The unlearning loop: AdamW on a forget term and a retain term, in one of three storage arms.

"fp32": parameters and optimizer state are float32, the master copy of mixed-precision training.
"bf16": parameters, gradients and optimizer state are bfloat16 and nothing else exists, as in the released code.
"bf16-sr": the same, but every result of a step is rounded to bfloat16 at random, so that its mean is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import Arithmetic, autocast
from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.arms.stochastic_rounding import StochasticAdamW
from unforgotten.experiments.config import Storage
from unforgotten.experiments.methods.ga import gradient_ascent
from unforgotten.experiments.methods.method import Method
from unforgotten.experiments.methods.npo import negative_preference
from unforgotten.experiments.methods.reference import Reference
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.methods.retain import retain_divergence
from unforgotten.experiments.methods.settings import Settings
from unforgotten.experiments.models.batches import Batch, Documents, shuffled_batches
from unforgotten.experiments.models.log_probs import cross_entropy, distributions
from unforgotten.experiments.models.scoring import mean_loss, next_logits, score_batch
from unforgotten.experiments.models.training import Progress


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: after `steps`, by the rule ("forget_loss") or at the limit ("max_steps")."""

    steps: int
    stopped: str
    forget_loss: float


def arithmetic_of(settings: Settings, storage: Storage) -> Arithmetic:
    """How an arm of these settings computes."""
    return Arithmetic(KEPT[storage].dtype, settings.autocast, settings.products)


def unlearn(
    model: PreTrainedModel,
    name: str,
    settings: Settings,
    documents: tuple[Documents, Documents],
    reference: Reference,
    *,
    watched: Documents,
    storage: Storage,
    seed: int,
    progress: Progress,
) -> Outcome:
    """Unlearn in place, starting from the target's weights.

    Args:
        model: a copy of the target, float32; converted to the arm's dtype here.
        name: a key of `METHODS`.
        settings: see `settings_of`.
        documents: (forget, retain), token ids.
        reference: of the target on these documents, in the arithmetic of this arm.
        watched: the documents of the stopping rule.
        storage: the arm.
        seed: seed of the order of documents, and of the random bits of stochastic rounding.
        progress: called after each step.
    """
    method, (forget, retain) = METHODS[name], documents
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(seed)
    arithmetic = arithmetic_of(settings, storage)
    arithmetic.cast(model)
    optimizer = _optimizer(model, settings.lr, storage, seed)
    model, optimizer = accelerator.prepare(model, optimizer)
    pad_id = model.config.pad_token_id or 0
    forget_batches = shuffled_batches(forget, settings.batch, pad_id, seed)
    retain_batches = shuffled_batches(retain, settings.retain_batch, pad_id, seed + 1)
    with arithmetic.computing():
        loss_now = mean_loss(model, watched, 4 * settings.batch)
    step, stopped = 0, "max_steps"
    while step < settings.max_steps:
        step += 1
        with arithmetic.computing():
            with autocast(settings.autocast):
                loss = _loss(model, method, settings, next(forget_batches), reference)
                if method.retain:
                    kept = _retain_loss(model, method, next(retain_batches), reference)
                    loss = loss + settings.alpha * kept
            accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % settings.check_every == 0 or step == settings.max_steps:
            with arithmetic.computing():
                loss_now = mean_loss(model, watched, 4 * settings.batch)
        progress(step, settings.max_steps, f"forget loss {loss_now:.2f}")
        if loss_now >= settings.stop_forget_loss:
            stopped = "forget_loss"
            break
    model.eval()
    return Outcome(step, stopped, loss_now)


def _optimizer(model: PreTrainedModel, lr: float, storage: Storage, seed: int) -> torch.optim.Optimizer:
    if KEPT[storage].rounding == "stochastic":
        return StochasticAdamW(model.parameters(), lr, seed + 2)  # seed, seed + 1: the documents
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)


def _loss(model: PreTrainedModel, method: Method, settings: Settings, batch: Batch, reference: Reference) -> Tensor:
    scored = score_batch(model, batch)
    if method.forget == "GA":
        return gradient_ascent(scored)
    return negative_preference(scored, reference.sequences[list(batch.documents)], settings.beta)


def _retain_loss(model: PreTrainedModel, method: Method, batch: Batch, reference: Reference) -> Tensor:
    if method.retain == "GDR":
        return cross_entropy(score_batch(model, batch))
    rows = [reference.distributions[i] for i in batch.documents]
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = batch.attention_mask[:, 1:].bool()
    return retain_divergence(distributions(next_logits(model, batch)), mask, padded)
