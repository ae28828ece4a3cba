"""What models say of given texts, token by token: likelihoods of one, distances between two (T15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.audit.verdict.evidence import mean_of
from unforgotten.audit.verdict.legs import Distance
from unforgotten.experiments.models.batches import Batch, pad
from unforgotten.experiments.models.scoring import next_logits
from unforgotten.theory.models.divergence import U64, metric_change_upper_bound
from unforgotten.theory.models.greedy import certified_tokens

LIKELIHOODS = ("loss", "accuracy", "probability")
Items = dict[str, list[float]]
BATCH_BYTES = 2**27  # of one model's logits in float64


@dataclass
class Apart:
    """Sums of one pair of models: items a text, and all tokens."""

    kl: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    token_kl: list[NDArray[Any]] = field(default_factory=list)
    certified: list[NDArray[Any]] = field(default_factory=list)

    def distance(self, first: str, second: str) -> Distance:
        """Return the distance between the two named models over all texts so far."""
        return Distance(
            first=first,
            second=second,
            kl=mean_of(self.kl),
            agreement=mean_of(self.agreement),
            tv_upper_bound=metric_change_upper_bound(np.concatenate(self.token_kl)),
            certified=float(np.concatenate(self.certified).mean()),
        )


def batches(texts: Sequence[Sequence[int]], vocabulary: int, pad_id: int) -> list[Batch]:
    """Return the texts in order as padded batches, as many texts in each as BATCH_BYTES of logits allow."""
    longest = max(len(t) for t in texts)
    size = max(1, BATCH_BYTES // (8 * vocabulary * longest))
    return [pad(texts[i : i + size], pad_id) for i in range(0, len(texts), size)]


@torch.no_grad()
def logits_of(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """Return next-token logits, float64 (tokens, vocabulary) on the CPU, one tensor a text."""
    logits = next_logits(model, batch.on(model.device)).cpu()
    lengths = batch.attention_mask.sum(-1).tolist()
    return [row[: n - 1].double() for row, n in zip(logits, lengths, strict=True)]


def score(items: Items, logits: Sequence[Tensor], batch: Batch) -> None:
    """Append loss (nats a token), top-1 accuracy and exp(-loss) of each text, the next words given."""
    for row, ids in zip(logits, batch.input_ids, strict=True):
        labels = ids[1 : len(row) + 1]
        loss = float(torch.nn.functional.cross_entropy(row, labels))
        items["loss"].append(loss)
        items["accuracy"].append(float((row.argmax(-1) == labels).double().mean()))
        items["probability"].append(float(np.exp(-loss)))


def compare(apart: Apart, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Append KL(first || second), agreement, and which top-1 tokens of `first` are certified.

    The KL that bounds use is raised by its rounding: V + 8 operations on terms whose absolute sum is known.
    """
    for p, q in zip(first, second, strict=True):
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        terms = log_p.exp() * (log_p - log_q)
        kl = terms.sum(-1).clamp(min=0)
        slack = (terms.shape[-1] + 8) * U64 * terms.abs().sum(-1)
        apart.kl.append(float(kl.mean()))
        apart.agreement.append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
        apart.token_kl.append((kl + slack).numpy())
        moved = q - p
        change = (moved.amax(-1) - moved.amin(-1)) / 2
        apart.certified.append(certified_tokens(p.numpy(), change.numpy()))


def measure(
    models: Mapping[str, PreTrainedModel], pairs: Sequence[tuple[str, str]], texts: Sequence[Batch]
) -> tuple[dict[str, Items], list[Distance]]:
    """Return the items of each model and the distance of each pair, in one pass over the texts.

    Args:
        models: models by name.
        pairs: names of two models each.
        texts: batches.

    Raises:
        ValueError: a model gives logits that are not finite.
    """
    items: dict[str, Items] = {name: {m: [] for m in LIKELIHOODS} for name in models}
    apart = {pair: Apart() for pair in pairs}
    for batch in texts:
        logits = {name: logits_of(model, batch) for name, model in models.items()}
        for name, rows in logits.items():
            if not all(torch.isfinite(row).all() for row in rows):
                raise ValueError(f"logits of {name} must be finite, got nan or inf")
            score(items[name], rows, batch)
        for (first, second), sums in apart.items():
            compare(sums, logits[first], logits[second])
    return items, [sums.distance(*pair) for pair, sums in apart.items()]
