"""The unlearning loop: AdamW on a forget term and a retain term, in one of three storage arms.

"fp32": parameters and optimizer state are float32, the master copy of mixed-precision training.
"bf16": parameters, gradients and optimizer state are bfloat16 and nothing else exists, as in the released code.
"bf16-sr": the same, but every result of a step is rounded to bfloat16 at random, so that its mean is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import Arithmetic, autocast
from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.arms.stochastic_rounding import StochasticAdamW
from unforgotten.experiments.config import Autocast, MethodConfig, Products, Storage, UnlearningConfig
from unforgotten.experiments.methods.registry import METHODS, Method
from unforgotten.experiments.models.batches import Batch, in_order, shuffled_batches
from unforgotten.experiments.models.log_probs import (
    TokenLogProbs,
    cross_entropy,
    distributions,
    gradient_ascent,
    negative_preference,
    retain_divergence,
    sequence_log_probs,
    token_log_probs,
)
from unforgotten.experiments.models.training import Progress

Documents = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Settings:
    """What one method runs with, after its own settings have replaced the common ones."""

    lr: float
    alpha: float
    beta: float
    batch: int
    retain_batch: int
    max_grad_norm: float
    stop_forget_loss: float
    check_every: int
    max_steps: int
    autocast: Autocast
    products: Products


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: after `steps`, by the rule ("forget_loss") or at the limit ("max_steps")."""

    steps: int
    stopped: str
    forget_loss: float


@dataclass(frozen=True)
class Reference:
    """What the losses need of the target, computed once.

    Attributes:
        sequences: log p of each forget document, (n,).
        distributions: normalized log-probabilities of each retain document at every position, float32
            (length - 1, vocabulary).
    """

    sequences: Tensor
    distributions: tuple[Tensor, ...]


def settings_of(config: UnlearningConfig, own: MethodConfig, storage: Storage, products: Products) -> Settings:
    """Return the settings of a method in a storage arm: its own where it has any, else the common ones."""
    return Settings(
        lr=own.lr or config.lr[storage],
        alpha=config.alpha if own.alpha is None else own.alpha,
        beta=config.beta,
        batch=config.batch,
        retain_batch=config.retain_batch,
        max_grad_norm=config.max_grad_norm,
        stop_forget_loss=own.stop_forget_loss or config.stop_forget_loss,
        check_every=config.check_every,
        max_steps=own.max_steps or config.max_steps[storage],
        autocast=config.autocast if storage == "fp32" else "none",
        products=products,
    )


def arithmetic_of(settings: Settings, storage: Storage) -> Arithmetic:
    """How an arm of these settings computes."""
    return Arithmetic(KEPT[storage].dtype, settings.autocast, settings.products)


@torch.no_grad()
def make_reference(
    target: PreTrainedModel, documents: tuple[Documents, Documents], batch: int, arithmetic: Arithmetic
) -> Reference:
    """Run the target once over both sets, in the arithmetic of the arm, to which it is converted in place.

    Before the first step, then, model and reference agree: of one batch they give equal log-probabilities, so that the
    divergence is 0 and no preference comes from rounding the weights.
    """
    arithmetic.cast(target)
    sequences: list[Tensor] = []
    rows: list[Tensor] = []
    with arithmetic.computing(), autocast(arithmetic.autocast):
        for b in _pass(target, documents[0], batch):
            sequences.append(sequence_log_probs(_forward(target, b)))
        for b in _pass(target, documents[1], batch):
            lengths = (b.attention_mask.sum(-1) - 1).tolist()
            normalized = distributions(_logits(target, b))
            rows += [d[:n].clone() for d, n in zip(normalized, lengths, strict=True)]
    return Reference(torch.cat(sequences), tuple(rows))


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
        settings: settings of the method in this arm, from `settings_of`.
        documents: token ids of the (forget, retain) documents.
        reference: log-probabilities of the target on these documents, in the arithmetic of this arm.
        watched: the documents of the stopping rule.
        storage: the arm.
        seed: seed of the order of documents, and of the random bits of stochastic rounding.
        progress: callback after each step.
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
    scored = _forward(model, batch)
    if method.forget == "GA":
        return gradient_ascent(scored)
    return negative_preference(scored, reference.sequences[list(batch.documents)], settings.beta)


def _retain_loss(model: PreTrainedModel, method: Method, batch: Batch, reference: Reference) -> Tensor:
    if method.retain == "GDR":
        return cross_entropy(_forward(model, batch))
    rows = [reference.distributions[i] for i in batch.documents]
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = batch.attention_mask[:, 1:].bool()
    return retain_divergence(distributions(_logits(model, batch)), mask, padded)


@torch.no_grad()
def document_losses(model: PreTrainedModel, documents: Documents, batch: int) -> Tensor:
    """Mean negative log-probability per token of each document, float32 (n,)."""
    losses = []
    for b in _pass(model, documents, batch):
        scored = _forward(model, b)
        losses.append(-scored.label.sum(-1) / scored.mask.sum(-1))
    return torch.cat(losses)


def mean_loss(model: PreTrainedModel, documents: Documents, batch: int) -> float:
    """Mean over documents of `document_losses`."""
    return float(document_losses(model, documents, batch).mean())


def _pass(model: PreTrainedModel, documents: Documents, batch: int) -> list[Batch]:
    return list(in_order(documents, batch, model.config.pad_token_id or 0))


def _forward(model: PreTrainedModel, batch: Batch) -> TokenLogProbs:
    return token_log_probs(_logits(model, batch), batch.input_ids, batch.attention_mask)


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits
