"""All measurements of one model, and of one pair of models under one format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.metrics.registry import (
    Probes,
    knowledge,
    losses,
    min_k,
    of_items,
    privacy_leakage,
    verbatim_memory,
)
from unforgotten.experiments.models.scoring import token_scores
from unforgotten.experiments.quantizers.registry import State, linear_names, quantize_state
from unforgotten.records.store import Measurement
from unforgotten.theory.laws.update import GridMode, Survival
from unforgotten.theory.models.decomposition import lost_effect
from unforgotten.theory.models.recovery import recovered_fraction

DECOMPOSED = ("forget_loss", "retain_loss", "M1", "M2", "M4")
RECOVERED = ("M1", "M2")
Items = dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Bench:
    """What every evaluation of a run shares. `model` is a shell that takes the weights of the moment."""

    model: PreTrainedModel
    tokenizer: Any
    probes: Probes
    config: RunConfig

    def with_state(self, state: State) -> PreTrainedModel:
        """Load these weights into the one model of the bench, and return it."""
        self.model.load_state_dict(state)
        return self.model

    def quantized(self, state: State, format_name: str) -> State:
        """Q(state), or the state itself for "none"."""
        if format_name == "none":
            return state
        return quantize_state(state, linear_names(self.model), format_name)


def behaviour(bench: Bench, state: State) -> list[Measurement]:
    """M1, M2, M4 and the two losses."""
    model = bench.with_state(state)
    return _behaviour(bench, model, _scores(bench, model, bench.probes.passages))


def _behaviour(bench: Bench, model: PreTrainedModel, passages: Sequence[Tensor]) -> list[Measurement]:
    """Measure M1, M2, M4 and the two losses; `passages` holds the scores of the forget passages."""
    config = bench.config
    answers = (knowledge(name, model, bench.probes, bench.tokenizer, config.evaluation) for name in ("M2", "M4"))
    return [
        verbatim_memory(model, bench.probes, bench.tokenizer, config),
        *answers,
        *losses(passages, _scores(bench, model, bench.probes.retain)),
    ]


def _scores(bench: Bench, model: PreTrainedModel, documents: Sequence[Sequence[int]]) -> list[Tensor]:
    return token_scores(model, documents, bench.config.evaluation.batch)


def membership_scores(bench: Bench, state: State) -> list[float]:
    """Min-K % of the forget texts, then of the holdout texts."""
    model, probes = bench.with_state(state), bench.probes
    scores = [s for texts in (probes.passages, probes.holdout) for s in _scores(bench, model, texts)]
    return min_k(scores, bench.config.evaluation.min_k)


def evaluate(bench: Bench, state: State, retrained_scores: Sequence[float]) -> list[Measurement]:
    """M1-M4 and losses of one model; each text is scored once."""
    model, probes = bench.with_state(state), bench.probes
    passages, holdout = (_scores(bench, model, d) for d in (probes.passages, probes.holdout))
    leak = privacy_leakage(
        min_k([*passages, *holdout], bench.config.evaluation.min_k),
        retrained_scores,
        len(passages),
        seed=bench.config.seed,
    )
    return [*_behaviour(bench, model, passages), *leak]


def hybrids(bench: Bench, target: State, unlearned: State, format_name: str) -> dict[str, State]:
    """Return the weights of the two mixed models of T14 under one format, by name."""
    q_target, q_unlearned = (bench.quantized(s, format_name) for s in (target, unlearned))
    return hybrid_states(linear_names(bench.model), target, unlearned, q_target, q_unlearned)


def hybrid_states(
    names: Sequence[str], target: State, unlearned: State, q_target: State, q_unlearned: State
) -> dict[str, State]:
    """Return the two mixed models of T14: the target with the surviving update, and Q(target) with the whole update.

    What no quantizer touches, all but `names` (embeddings, norms), takes the whole update in both.
    """
    touched = set(names)
    return {
        "target+D": {k: target[k] + (q_unlearned[k] - q_target[k]) if k in touched else unlearned[k] for k in target},
        "Q(target)+delta": {
            k: q_target[k] + (unlearned[k] - target[k]) if k in touched else unlearned[k] for k in target
        },
    }


def decompose(
    bench: Bench, states: tuple[State, State], format_name: str, known: dict[str, Items]
) -> list[Measurement]:
    """Rows of T14 and T16 for one unlearned model under one format.

    Args:
        bench: parts that all measurements share.
        states: weights of (target, unlearned).
        format_name: the format.
        known: per-item values of "target", "unlearned", "Q(target)" and "Q(unlearned)".
    """
    measured = {name: behaviour(bench, state) for name, state in hybrids(bench, *states, format_name).items()}
    rows = [
        Measurement(f"{m.metric}@{name}", m.value, m.stderr, m.n, m.items) for name, ms in measured.items() for m in ms
    ]
    items = known | {name: {m.metric: m.items or () for m in ms} for name, ms in measured.items()}
    for metric in DECOMPOSED:
        rows += _effects(metric, items)
    for metric in RECOVERED:
        rows.append(_recovery(metric, items, bench.config.seed))
    return rows


def _effects(metric: str, items: dict[str, Items]) -> list[Measurement]:
    """Gating and base shift are linear in F, so they have a value for every item."""
    names = ("target", "unlearned", "Q(target)", "Q(unlearned)", "target+D", "Q(target)+delta")
    effects = [
        lost_effect(w=w, w_new=u, q=q, q_new=qu, w_plus_d=d, q_plus_delta=qd)
        for w, u, q, qu, d, qd in zip(*(items[name][metric] for name in names), strict=True)
    ]
    suffix = "" if metric == "forget_loss" else f"_{metric}"
    return [
        of_items(f"lost_effect{suffix}", [e.total for e in effects]),
        of_items(f"gating_effect{suffix}", [e.gating for e in effects]),
        of_items(f"base_shift_effect{suffix}", [e.base_shift for e in effects]),
    ]


def _recovery(metric: str, items: dict[str, Items], seed: int) -> Measurement:
    r = recovered_fraction(
        np.asarray(items["unlearned"][metric]),
        np.asarray(items["Q(unlearned)"][metric]),
        np.asarray(items["Q(target)"][metric]),
        seed=seed,
    )
    value = r.rho if r.defined else float("nan")  # written as null: undefined, never a number
    n = len(items["unlearned"][metric])
    return Measurement(f"rho_{metric}", value, r.stderr, n, interval=(r.low, r.high))


def weights_rows(survival: Survival, mode: GridMode) -> list[Measurement]:
    """Return what survives in the weights under one format, as measurements; names end in @fixed for the fixed grid."""
    suffix = "" if mode == "adaptive" else f"@{mode}"
    spread = survival.flips_variance**0.5
    values: list[tuple[str, float, float | None]] = [
        ("gain", survival.gain, None),
        ("cosine", survival.cosine, None),
        ("code_flips", survival.code_flips, None),
        ("expected_flips", survival.expected_flips, spread),
        ("value_changes", survival.value_changes, None),
        ("unchanged_fraction", survival.unchanged_fraction, None),
        ("position_distance", survival.position_distance, None),
    ]
    return [Measurement(name + suffix, v, e, survival.weights) for name, v, e in values]


def state_of(model: PreTrainedModel) -> State:
    """Return a float32 copy of the model's weights, by name."""
    return {k: v.detach().clone().to(torch.float32) for k, v in model.state_dict().items()}
