"""Boundary push: after a pair has unlearned, salient weights are moved across the nearest edge of their cell.

What a format swallows is swallowed weight by weight: the update is too small for the code to change. The push changes codes at the
least cost in weights. At the quantized model, with the gradients of the cross entropy of all forget and all retain documents,
moving weight i by one code changes Q by v_i, and the losses by g_f v_i and g_r v_i to first order. Every weight goes the way that
raises the forget loss; those of the largest g_f v_i - alpha |g_r v_i| > 0 are moved, `share` of the weights at most, and half as
many for as long as the retain loss of the quantized model is up by more than `retain_budget`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unforgotten.experiments.methods.ga import GA
from unforgotten.experiments.methods.npo import NPO
from unforgotten.experiments.methods.retain import GDR, KLR
from unforgotten.experiments.methods.terms import LossMethod, by_loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from unforgotten.experiments.methods.method import Outcome, Task
    from unforgotten.experiments.methods.robust.crossings import Crossings
    from unforgotten.experiments.methods.robust.settings import BoundaryConfig
    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.models.batches import Documents


def push(model: PreTrainedModel, task: Task, found: Settings, settings: BoundaryConfig) -> int:
    """Move weights in place; return how many were.

    Args:
        model: unlearned model, in the arm's dtype.
        task: documents, and how to compute.
        found: settings of the pair that has unlearned.
        settings: format, share and budget.
    """
    import torch

    from unforgotten.experiments.models.matrices.conv1d import conv1d_names, turned_matrix

    weights, across = _linear(model), conv1d_names(model)
    kept = {name: w.detach().clone() for name, w in weights.items()}
    _fill_quantized(weights, kept, settings.format, across)
    before = _loss(model, task.retain, task, found.batch)
    gradients = [_gradients(model, weights, documents, task, found.batch) for documents in (task.forget, task.retain)]
    moves, scores = {}, []
    for name, weight in kept.items():
        forget, retain = (g[name] for g in gradients)
        rows, rising = (turned_matrix(x.cpu(), name, across) for x in (weight, forget > 0))
        move = _crossings(rows, rising, settings.format)
        moved, changes = (turned_matrix(x, name, across) for x in (move.weights, move.changes))
        moves[name], changes = moved.to(weight), changes.to(weight.device)
        scores.append((forget * changes - found.alpha * (retain * changes).abs()).reshape(-1))
    pooled = torch.cat(scores)
    order = pooled.argsort(descending=True, stable=True)
    count = min(int(settings.share * len(pooled)), int((pooled > 0).sum()))
    while count:
        chosen = torch.zeros(len(pooled), dtype=torch.bool, device=pooled.device).index_fill_(0, order[:count], True)
        parts = chosen.split([w.numel() for w in kept.values()])
        state = {
            name: torch.where(part.reshape(w.shape), moves[name], w)
            for (name, w), part in zip(kept.items(), parts, strict=True)
        }
        _fill_quantized(weights, state, settings.format, across)
        if _loss(model, task.retain, task, found.batch) - before <= settings.retain_budget:
            _fill(weights, state)
            return count
        count //= 2
    _fill(weights, kept)
    return 0


def _linear(model: PreTrainedModel) -> dict[str, Tensor]:
    from unforgotten.experiments.models.shell import linear_names

    named = dict(model.named_parameters())
    return {name: named[name] for name in linear_names(model)}


def _crossings(weight: Tensor, rising: Tensor, format_name: str) -> Crossings:
    from unforgotten.experiments.methods.robust.crossings import crossings
    from unforgotten.theory.formats.names import deterministic_format_named

    return crossings(weight, rising, deterministic_format_named(format_name), weight.dtype)


def _fill(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])


def _fill_quantized(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], format_name: str, across: frozenset[str]
) -> None:
    """Put Q of a state into weights; those whose names are in `across` are (in, out)."""
    from unforgotten.experiments.models.matrices.conv1d import turned_matrix
    from unforgotten.experiments.quantizers.own import own_values

    def values(name: str, w: Tensor) -> Tensor:
        return turned_matrix(own_values(turned_matrix(w, name, across), format_name), name, across)

    _fill(weights, {name: values(name, w) for name, w in state.items()})


def _loss(model: PreTrainedModel, documents: Documents, task: Task, batch: int) -> float:
    from unforgotten.experiments.models.scoring import mean_loss

    with task.arithmetic.computing():
        return mean_loss(model, documents, batch)


def _gradients(
    model: PreTrainedModel, weights: Mapping[str, Tensor], documents: Documents, task: Task, batch: int
) -> dict[str, Tensor]:
    """Return the gradient of the mean cross entropy of all documents, each batch by its share; float32."""
    import torch

    from unforgotten.experiments.models.log_probs import cross_entropy
    from unforgotten.experiments.models.scoring import batches_of, score_batch

    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    for b in batches_of(model, documents, batch):
        with task.arithmetic.computing():
            found = torch.autograd.grad(cross_entropy(score_batch(model, b)), list(weights.values()))
        for name, gradient in zip(weights, found, strict=True):
            total[name] += gradient.float() * (len(b.documents) / len(documents))
    return total


@dataclass(frozen=True)
class BoundaryMethod:
    """A pair of terms, and the push after it. A `Method`."""

    base: LossMethod

    @property
    def name(self) -> str:
        """Name of the pair, and of the push."""
        return f"{self.base.name}_push"

    @property
    def statement(self) -> str:
        """What it does."""
        return f"{self.base.statement}; then salient weights moved across the nearest edge of their cell"

    @property
    def source(self) -> str:
        """Where the terms are from."""
        return f"this project, from the cells of theory T1; {self.base.source}"

    @property
    def settings(self) -> type[BoundaryConfig]:
        """Type of what a profile may set for it."""
        from unforgotten.experiments.methods.robust.settings import BoundaryConfig

        return BoundaryConfig

    def unlearn(self, model: PreTrainedModel, task: Task, settings: BoundaryConfig) -> Outcome:
        """Descend the losses of the pair, then push."""
        from dataclasses import replace

        from unforgotten.experiments.methods.method import not_plain
        from unforgotten.experiments.methods.settings import settings_of

        outcome, found = self.base.descend(model, task, settings), settings_of(task, settings)
        pushed = push(model, task, found, settings)
        loss = _loss(model, task.watched, task, 4 * found.batch)
        return not_plain(replace(outcome, forget_loss=loss, settings={**outcome.settings, "pushed": pushed}))


METHODS = tuple(BoundaryMethod(by_loss(forget, retain)) for forget in (GA, NPO) for retain in (GDR, KLR))
