"""Language-model training of base, target and retrained models."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import Arithmetic, autocast
from unforgotten.experiments.compute.checkpointing import checkpointed
from unforgotten.experiments.compute.processes import Worker, processes
from unforgotten.experiments.compute.settings import DEFAULT, ComputeConfig
from unforgotten.experiments.config import Products, TrainingConfig
from unforgotten.experiments.methods.optimizers import adamw
from unforgotten.experiments.models.batches import Documents, shuffled_batches
from unforgotten.experiments.models.log_probs import cross_entropy, token_log_probs
from unforgotten.experiments.models.scoring import next_logits

Progress = Callable[[int, int, str], None]


def training_steps(config: TrainingConfig, documents: int) -> int:
    """Return the number of optimizer steps for this many documents."""
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil(config.epochs * documents / min(config.batch, documents)))


def train(
    model: PreTrainedModel,
    documents: Documents,
    config: TrainingConfig,
    *,
    seed: int,
    progress: Progress,
    products: Products,
    compute: ComputeConfig = DEFAULT,
) -> None:
    """Minimize the cross entropy of the documents in place: AdamW, warm-up, cosine decay, clipping at 1.

    The parameters stay float32; `autocast: bf16` only computes in bfloat16, with products as `products` says. Processes of one
    launch share the documents of a batch, and all end with the same weights.
    """
    arithmetic = Arithmetic(torch.float32, config.autocast, products)
    steps = training_steps(config, len(documents))
    together = processes()
    model.train()
    worker = Worker(model, lambda m: adamw(list(m.parameters()), config.lr, compute.adamw), together, 1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(worker.optimizer, lambda s: _lr_share(s, steps, config))
    pad_id = model.config.pad_token_id or 0
    batches = shuffled_batches(documents, config.batch, pad_id, seed)
    torch.manual_seed(seed)
    for step in range(1, steps + 1):
        loss = seen = 0.0
        with arithmetic.computing(), checkpointed(worker.model, enabled=compute.gradient_checkpointing):
            for batch, share in worker.parts(next(batches), "followers", compute.micro_batch):
                with autocast(config.autocast, batch.input_ids.device):
                    logits = next_logits(worker.model, batch)
                part = cross_entropy(token_log_probs(logits, batch.input_ids, batch.scored))
                worker.backward(part if share == 1.0 else share * part)
                loss, seen = loss + share * part.item(), seen + share
        worker.clip()
        worker.optimizer.step()
        worker.optimizer.zero_grad(set_to_none=True)
        schedule.step()
        progress(step, steps, f"loss {loss / seen:.3f}")
    worker.finish()
    model.eval()


def _lr_share(step: int, steps: int, config: TrainingConfig) -> float:
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
