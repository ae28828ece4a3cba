"""The meter: what a run and an audit measure of one state of a model.

In goes a state; out come its measurements by name. Every text is scored once, whatever is read from its scores:

    meter = Meter(shell, probes, settings)
    meter = dataclasses.replace(meter, retrained_scores=meter.membership(retrained))
    meter.measure(shell.quantized(unlearned, "int4-g64"))["M3"].value
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.config import Measuring
from unforgotten.experiments.metrics.knowledge import knowledge
from unforgotten.experiments.metrics.losses import losses
from unforgotten.experiments.metrics.memorization import verbatim_memory
from unforgotten.experiments.metrics.privacy import min_k, privacy_leakage
from unforgotten.experiments.metrics.probes import Probes
from unforgotten.experiments.models.scoring import token_scores
from unforgotten.experiments.models.shell import Shell
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.records.store import Measurement

ITEMWISE = ("M1", "M2", "M4", "forget_loss", "retain_loss")
"""Metrics whose value is the mean of their items; of the others, M3 has a value with a retrained model only."""
Measured = Mapping[str, Measurement]


@dataclass(frozen=True)
class Meter:
    """Measures states of a model.

    Attributes:
        shell: shell that takes the states.
        probes: documents, prompts and answers.
        settings: how they are measured.
        retrained_scores: what `membership` gives for the model that never saw the forget texts; None without it.
        known: measurements by fingerprint, where no state is to be measured twice.
    """

    shell: Shell
    probes: Probes
    settings: Measuring
    retrained_scores: list[float] | None = None
    known: dict[bytes, Measured] | None = None

    def measure(self, state: State, only: Collection[str] | None = None) -> Measured:
        """Return the measurements of a state, all that have a meaning or `only` some."""
        if self.known is None or only is not None:
            return self._measure(state, only)
        key = fingerprint(state)
        if key not in self.known:
            self.known[key] = self._measure(state, None)
        return self.known[key]

    def _measure(self, state: State, only: Collection[str] | None) -> Measured:
        model, probes = self.shell.with_state(state), self.probes
        settings, tokenizer = self.settings, self.shell.tokenizer
        passages, retain = (self._scores(model, d) for d in (probes.passages, probes.retain))
        found = [
            verbatim_memory(model, probes, tokenizer, settings),
            *(knowledge(m, model, probes, tokenizer, settings.evaluation) for m in ("M2", "M4")),
            *losses(passages, retain),
        ]
        if only is None:
            scores = min_k([*passages, *self._scores(model, probes.holdout)], settings.evaluation.min_k)
            leak = privacy_leakage(scores, self.retrained_scores or scores, len(passages), seed=settings.seed)
            found += [m for m in leak if m.metric != "M3" or self.retrained_scores is not None]
        return {m.metric: m for m in found if only is None or m.metric in only}

    def membership(self, state: State) -> list[float]:
        """Return Min-K % of the forget passages, then of the holdout texts."""
        model, probes = self.shell.with_state(state), self.probes
        scores = [s for texts in (probes.passages, probes.holdout) for s in self._scores(model, texts)]
        return min_k(scores, self.settings.evaluation.min_k)

    def _scores(self, model: PreTrainedModel, documents: Sequence[Sequence[int]]) -> list[Tensor]:
        return token_scores(model, documents, self.settings.evaluation.batch)


def fingerprint(state: State) -> bytes:
    """Return a digest of all weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.digest()
