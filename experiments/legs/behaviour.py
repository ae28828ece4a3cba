"""The behaviour leg of an audit: M1-M4 of target, unlearned model and both quantized, on a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.audit.progress.stages import Begin, Step, counted, ignore
from unforgotten.audit.verdict.evidence import leak
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg, Effects, Leak, Mean
from unforgotten.experiments.evaluation import hybrid_states
from unforgotten.experiments.legs.benchmark import Benchmark, read_benchmark
from unforgotten.experiments.legs.loaded_pair import Pair, load_shell, open_model_pair
from unforgotten.experiments.legs.output import effects, recovery
from unforgotten.experiments.metrics.registry import knowledge, losses, min_k, privacy_leakage, verbatim_memory
from unforgotten.experiments.models.scoring import token_scores
from unforgotten.experiments.quantizers.registry import State
from unforgotten.records.store import Measurement

RECOVERED = ("M1", "M2", "forget_loss")
DECOMPOSED = ("M1", "M2", "M4", "forget_loss", "retain_loss")
LEAKED = ("M1", "M2")
NO_RETRAINED = (
    "M3 is left out: it compares with a model that never saw the forget texts, and none was given; auc stands alone."
)
Measured = Mapping[str, Measurement]


@dataclass(frozen=True)
class Meter:
    """Measures states of a pair on a benchmark; `retrained_scores` as of `membership`, None without that model.

    Where `known` is given, no state is measured twice.
    """

    pair: Pair
    benchmark: Benchmark
    retrained_scores: list[float] | None = None
    known: dict[bytes, Measured] | None = None

    def measure(self, state: State) -> Measured:
        """M1, M2, M4, the two losses, auc and, where it has a meaning, M3."""
        if self.known is None:
            return self._measure(state)
        key = fingerprint(state)
        if key not in self.known:
            self.known[key] = self._measure(state)
        return self.known[key]

    def _measure(self, state: State) -> Measured:
        model, probes = self.pair.with_state(state), self.benchmark.probes
        settings, tokenizer = self.benchmark.settings, self.pair.tokenizer
        passages, retain, holdout = (self._scores(model, d) for d in (probes.passages, probes.retain, probes.holdout))
        scores = min_k([*passages, *holdout], settings.evaluation.min_k)
        found = [
            verbatim_memory(model, probes, tokenizer, settings),
            *(knowledge(m, model, probes, tokenizer, settings.evaluation) for m in ("M2", "M4")),
            *losses(passages, retain),
            *privacy_leakage(scores, self.retrained_scores or scores, len(passages), seed=settings.seed),
        ]
        kept = [m for m in found if m.metric != "M3" or self.retrained_scores is not None]
        return {m.metric: m for m in kept}

    def membership(self, state: State) -> list[float]:
        """Min-K % of the forget passages, then of the holdout texts."""
        model, probes = self.pair.with_state(state), self.benchmark.probes
        scores = [s for texts in (probes.passages, probes.holdout) for s in self._scores(model, texts)]
        return min_k(scores, self.benchmark.settings.evaluation.min_k)

    def _scores(self, model: PreTrainedModel, documents: Sequence[Sequence[int]]) -> list[Tensor]:
        return token_scores(model, documents, self.benchmark.settings.evaluation.batch)


def fingerprint(state: State) -> bytes:
    """Return a SHA-256 digest of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.digest()


def behaviour_leg(
    target: Path,
    unlearned: Path,
    formats: Sequence[str],
    benchmark: Path,
    *,
    retrained: Path | None = None,
    decompose: bool = True,
    step: Step = ignore,
) -> BehaviourLeg:
    """M1-M4 of both models in every format, T14, T16, and the union leak over formats.

    Args:
        target: directory of the model before unlearning.
        unlearned: directory of the model after unlearning.
        formats: names of formats, at least one.
        benchmark: directory, see `read_benchmark`.
        retrained: directory of the model that never saw the forget texts, for M3.
        decompose: switch for measuring the two mixed models of T14 too, which doubles the time.
        step: callback that is told which model comes next.

    Raises:
        ValueError: the input breaks a rule; one line.
    """
    pair = open_model_pair(target, unlearned)
    bench = read_benchmark(benchmark, pair.tokenizer, pair.context)
    meter = Meter(pair, bench)
    trained = None
    begin = counted(step, (retrained is not None) + 2 * (1 + len(formats)))
    if retrained is not None:
        begin("retrained")
        state = load_shell(retrained).state_dict()
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in pair.target.items()}:
            raise ValueError(f"{retrained}: must have the shapes of {target}, got another model")
        meter = Meter(pair, bench, meter.membership(state))
        trained = meter.measure(state)
    begin("target")
    base = {"none": meter.measure(pair.target)}
    for name in formats:
        begin(f"Q(target) {name}")
        base[name] = meter.measure(pair.quantized(pair.target, name))
    return measure_unlearned(
        meter, base, formats, benchmark=str(benchmark), trained=trained, decompose=decompose, begin=begin
    )


def measure_unlearned(
    meter: Meter,
    base: Mapping[str, Measured],
    formats: Sequence[str],
    *,
    benchmark: str,
    begin: Begin = lambda name: None,
    trained: Measured | None = None,
    decompose: bool = True,
) -> BehaviourLeg:
    """Measure the unlearned model and return the behaviour leg; `base` is the target by format, "none" for itself."""
    pair = meter.pair
    begin("unlearned")
    after: dict[str, Measured] = {"none": meter.measure(pair.unlearned)}
    found: dict[str, list[Effects]] = {}
    for name in formats:
        begin(f"Q(unlearned) {name}")
        state = pair.quantized(pair.unlearned, name)
        after[name] = meter.measure(state)
        if decompose:
            found[name] = _decompose(meter, name, state, _four(base, after, name))
    begin("")
    notes = [*meter.benchmark.notes, *([] if meter.retrained_scores is not None else [NO_RETRAINED])]
    leg = leg_of(base, after, benchmark=benchmark, effects_by_format=found, notes=notes)
    if trained is not None:
        leg["metrics"]["retrained"] = means(trained)
    return leg


def leg_of(
    base: Mapping[str, Measured],
    after: Mapping[str, Measured],
    *,
    benchmark: str,
    effects_by_format: Mapping[str, list[Effects]] | None = None,
    notes: Sequence[str] = (),
) -> BehaviourLeg:
    """Build the behaviour leg from measurements of both models by format, "none" for the model itself."""
    formats = [name for name in after if name != "none"]
    rows = []
    for name in formats:
        models = _four(base, after, name)
        items = items_of(models)
        rows.append(
            BehaviourFormat(
                format=name,
                metrics={key: means(models[key]) for key in ("Q(target)", "Q(unlearned)")},
                recoveries=[recovery(metric, items) for metric in RECOVERED],
                effects=(effects_by_format or {}).get(name, []),
            )
        )
    return BehaviourLeg(
        benchmark=benchmark,
        metrics={"target": means(base["none"]), "unlearned": means(after["none"])},
        formats=rows,
        leaks=leaks(base["none"], after["none"], {name: after[name] for name in formats}),
        notes=list(notes),
    )


def _four(base: Mapping[str, Measured], after: Mapping[str, Measured], name: str) -> dict[str, Measured]:
    return {"target": base["none"], "unlearned": after["none"], "Q(target)": base[name], "Q(unlearned)": after[name]}


def _decompose(meter: Meter, format_name: str, q_unlearned: State, models: Mapping[str, Measured]) -> list[Effects]:
    pair = meter.pair
    q_target = pair.quantized(pair.target, format_name)
    mixed = hybrid_states(pair.names, pair.target, pair.unlearned, q_target, q_unlearned)
    measured = {**models, **{name: meter.measure(state) for name, state in mixed.items()}}
    items = items_of(measured)
    return [effects(metric, items) for metric in DECOMPOSED]


def items_of(models: Mapping[str, Measured]) -> dict[str, dict[str, list[float]]]:
    """Return the per-item values of each metric, by model and metric."""
    return {name: {metric: list(m.items or ()) for metric, m in measured.items()} for name, measured in models.items()}


def leaks(before: Measured, after: Measured, quantized: Mapping[str, Measured]) -> list[Leak]:
    """Return the union leak over formats of each metric from which unlearning took something."""
    found = (
        leak(
            metric,
            np.asarray(before[metric].items),
            np.asarray(after[metric].items),
            {name: np.asarray(measured[metric].items) for name, measured in quantized.items()},
        )
        for metric in LEAKED
    )
    return [row for row in found if row is not None]


def means(measured: Measured) -> dict[str, Mean]:
    """Values with their standard errors, as in the rows of a run; a metric without a value is left out."""
    return {
        name: Mean(value=m.value, stderr=m.stderr, n=m.n or 0) for name, m in measured.items() if np.isfinite(m.value)
    }
