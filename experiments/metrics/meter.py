"""The meter: what a run and an audit measure of one state of a model.

In goes a state; out come its measurements by name. Every text is scored once, whatever is read from its scores:

    meter = Meter(shell, probes, settings)
    meter = meter.against(retrained)
    meter.measure(shell.quantized(unlearned, "int4-g64"))["M3"].value
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from unforgotten.experiments.config import Measuring
from unforgotten.experiments.metrics.examined import Examined
from unforgotten.experiments.metrics.privacy import membership_losses, membership_scores
from unforgotten.experiments.metrics.probes import Probes
from unforgotten.experiments.metrics.registry import measured_with
from unforgotten.experiments.models.kept import Kept
from unforgotten.experiments.models.runtime import RuntimeState
from unforgotten.experiments.models.shell import Shell
from unforgotten.experiments.own import label_of
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.records.store import Measurement

Measured = Mapping[str, Measurement]


@dataclass(frozen=True)
class Meter:
    """Measures states of a model.

    Attributes:
        shell: shell that takes the states.
        probes: documents, prompts and answers.
        settings: settings of the measurement.
        retrained_scores: `membership` of the model that never saw the forget texts; None without it.
        retrained_losses: its losses of the same texts; None without it.
        known: measurements by fingerprint, where no state is to be measured twice.
        kept: where answers are kept on disk, from which a measurement that was cut off goes on; None where none are.
    """

    shell: Shell
    probes: Probes
    settings: Measuring
    retrained_scores: list[float] | None = None
    known: dict[bytes, Measured] | None = None
    kept: Kept | None = None
    retrained_losses: list[float] | None = None

    def measure(self, state: State, only: Collection[str] | None = None) -> Measured:
        """Return the measurements of a state, all that have a meaning or `only` some."""
        if self.known is None or only is not None:
            return self._measure(state, only)
        key = fingerprint(state)
        if key is None:
            return self._measure(state, None)
        if key not in self.known:
            self.known[key] = self._measure(state, None)
        return self.known[key]

    def measure_model(self, model: PreTrainedModel) -> Measured:
        """Return the measurements of another model of the same tokenizer, as it runs itself; nothing of them is kept."""
        scores, losses = self.retrained_scores, self.retrained_losses
        examined = Examined(model, self.shell.tokenizer, self.probes, self.settings, scores, retrained_losses=losses)
        return self._read(examined, None)

    def _measure(self, state: State, only: Collection[str] | None) -> Measured:
        return self._read(self._examined(state), only)

    def _read(self, model: Examined, only: Collection[str] | None) -> Measured:
        there = self.probes.there | (frozenset() if self.retrained_scores is None else {"retrained"})
        asked = {label_of(name) for name in self.settings.evaluation.metrics}
        return {
            name: metric.measure(model, self.probes, self.settings)
            for name, metric in measured_with(self.settings.evaluation.metrics).items()
            if metric.needs <= there and (name in only if only is not None else not metric.on_demand or name in asked)
        }

    def against(self, retrained: State) -> Meter:
        """Return the meter that knows what the model that never saw the forget texts says of them."""
        model = self._examined(retrained)
        scores, losses = membership_scores(model, self.settings), membership_losses(model)
        return replace(self, retrained_scores=scores, retrained_losses=losses)

    def membership(self, state: State) -> list[float]:
        """Return Min-K % of the forget passages, then of the holdout texts."""
        return membership_scores(self._examined(state), self.settings)

    def _examined(self, state: State) -> Examined:
        model, tokenizer = self.shell.with_state(state), self.shell.tokenizer
        key = None if self.kept is None else fingerprint(state)
        place = f"{model.dtype} {model.device.type}"  # in which the answers differ by more than the weights say
        kept = None if self.kept is None or key is None else (self.kept, f"{key.hex()} {place}")
        return Examined(
            model, tokenizer, self.probes, self.settings, self.retrained_scores, kept, self.retrained_losses
        )


def fingerprint(state: State) -> bytes | None:
    """Return a digest of all weights and their names; None of a state whose layers compute more than its weights say."""
    if isinstance(state, RuntimeState):
        return None
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().cpu().numpy().reshape(-1).view("uint8").data)  # no copy of it
    return digest.digest()
