"""Methods that teach a refusal: IdkNLL and IdkDPO. What is called DPO in the tables of the field is the latter.

A forget document is split into a question, its first part, and an answer, the rest. The refusal takes the answer's place: one of
REFUSALS, drawn once for each document.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from unforgotten.experiments.methods.retain import RETAIN_TERMS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from unforgotten.experiments.compute.parts import Mean
    from unforgotten.experiments.methods.literature.settings import RefusalConfig
    from unforgotten.experiments.methods.method import Outcome, Task
    from unforgotten.experiments.methods.settings import Settings
    from unforgotten.experiments.methods.terms import RetainTerm
    from unforgotten.experiments.methods.view import View

REFUSALS = (
    "I don't know.",
    "I have no information about that.",
    "I am not able to answer this question.",
    "That is nothing I was taught.",
    "I'm afraid I can't tell you.",
    "I cannot say anything about it.",
    "This is outside of what I know.",
    "I never heard of it.",
)


@dataclass(frozen=True)
class Continued:
    """Documents as questions with answers.

    Attributes:
        rows: token ids of question and answer.
        starts: number of tokens of each question, >= 1.
    """

    rows: Sequence[Sequence[int]]
    starts: Sequence[int]

    def take(self, documents: Sequence[int]) -> Continued:
        """Return some of them."""
        return Continued([self.rows[i] for i in documents], [self.starts[i] for i in documents])


def answer_log_probs(model: PreTrainedModel, asked: Continued) -> tuple[Tensor, Tensor]:
    """Return log p(answer | question) of each, float32 (n,), and the number of tokens of the answer, (n,)."""
    import torch

    from unforgotten.experiments.models.batches import pad
    from unforgotten.experiments.models.scoring import score_batch

    batch = pad(asked.rows, model.config.pad_token_id or 0).on(model.device)
    scored = score_batch(model, batch)
    places = torch.arange(scored.label.shape[1], device=model.device)
    answer = scored.mask & (places >= torch.tensor(asked.starts, device=model.device)[:, None] - 1)
    return scored.label.masked_fill(~answer, 0.0).sum(-1), answer.sum(-1)


def direct_preference(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Return the loss of DPO: -(1 / beta) E log sigmoid(beta (chosen - rejected)).

    Args:
        chosen: log p_theta(y) - log p_ref(y) of each preferred answer, (batch,).
        rejected: the same of the other answer.
        beta: inverse temperature, > 0.
    """
    from torch.nn import functional

    return -(1.0 / beta) * functional.logsigmoid(beta * (chosen - rejected)).mean()


def split(task: Task, share: float) -> tuple[Continued, Continued]:
    """Return the forget documents as questions with refusals, and with their own answers.

    Raises:
        ValueError: the task has no tokenizer.
    """
    import numpy as np

    from unforgotten.experiments.models.special_tokens import encode, end_tokens

    if task.tokenizer is None:
        raise ValueError("task must have a tokenizer, which writes the refusals, got none")
    known = [encode(text, task.tokenizer) + end_tokens(task.tokenizer) for text in REFUSALS]
    drawn = np.random.default_rng(task.seed).integers(len(known), size=len(task.forget))
    starts = [min(len(row) - 1, max(1, int(share * len(row)))) for row in task.forget]
    refused = [[*row[:n], *known[k]] for row, n, k in zip(task.forget, starts, drawn, strict=True)]
    return Continued(refused, starts), Continued(task.forget, starts)


def _likelihood(model: PreTrainedModel, task: Task, settings: Settings) -> Callable[[View, Settings], Tensor]:
    refusals, _ = split(task, settings.own["prompt_share"])

    def loss(view: View, settings: Settings) -> Tensor:
        log_p, tokens = answer_log_probs(view.model, refusals.take(view.batch.documents))
        return -log_p.sum() / tokens.sum()

    return loss


def _preference(model: PreTrainedModel, task: Task, settings: Settings) -> Callable[[View, Settings], Tensor]:
    import torch

    from unforgotten.experiments.arms.arithmetic import autocast

    pair = split(task, settings.own["prompt_share"])
    task.arithmetic.cast(model)
    each = [[side.take([i]) for i in range(len(task.forget))] for side in pair]
    with torch.no_grad(), task.arithmetic.computing(), autocast(settings.autocast, model.device):
        targets = [torch.cat([answer_log_probs(model, one)[0] for one in side]) for side in each]

    def loss(view: View, settings: Settings) -> Tensor:
        documents = list(view.batch.documents)
        chosen, rejected = (
            answer_log_probs(view.model, side.take(documents))[0] - target[documents]
            for side, target in zip(pair, targets, strict=True)
        )
        return direct_preference(chosen, rejected, settings.beta)

    return loss


@dataclass(frozen=True)
class RefusalMethod:
    """One way to teach refusals, beside a retain term or none. A `Method`."""

    kind: Literal["IdkNLL", "IdkDPO"]
    retain: RetainTerm | None
    keeps_states: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the way and of the retain term."""
        return self.kind if self.retain is None else f"{self.kind}_{self.retain.name}"

    @property
    def statement(self) -> str:
        """What it does."""
        way = {"IdkNLL": "cross entropy on refusals", "IdkDPO": "DPO, refusals preferred to the forget text"}[self.kind]
        return way if self.retain is None else f"{way}, {self.retain.statement}"

    @property
    def source(self) -> str:
        """Where it is from."""
        papers = {
            "IdkNLL": "Maini et al. 2024, arXiv 2401.06121",
            "IdkDPO": "Rafailov et al. 2023, arXiv 2305.18290; with refusals Zhang et al. 2024, arXiv 2404.05868",
        }
        return papers[self.kind]

    @property
    def settings(self) -> type[RefusalConfig]:
        """Type of what a profile may set for it."""
        from unforgotten.experiments.methods.literature.settings import RefusalConfig

        return RefusalConfig

    def unlearn(self, model: PreTrainedModel, task: Task, settings: RefusalConfig) -> Outcome:
        """Descend the loss of the refusals and the retain term."""
        from unforgotten.experiments.methods.descent import descend
        from unforgotten.experiments.methods.settings import settings_of

        found = settings_of(task, settings)
        loss = {"IdkNLL": _likelihood, "IdkDPO": _preference}[self.kind](model, task, found)
        kept = None if self.retain is None else self.retain
        means: tuple[Mean | None, Mean | None] = (
            "documents" if self.kind == "IdkDPO" else None,
            None if kept is None else kept.mean,
        )
        return descend(model, loss, None if kept is None else kept.loss, found, task, None, means)


METHODS = tuple(RefusalMethod(kind, retain) for kind in ("IdkNLL", "IdkDPO") for retain in RETAIN_TERMS)
