"""Rows of one pair of models, target and unlearned, under one format: decomposition, recovery, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unforgotten.experiments.metrics.effects import Items, effects, hybrid_states, recovered
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.models.runtime import RuntimeState
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.experiments.quantizers.registry import ours_of
from unforgotten.records.store import Measurement
from unforgotten.theory.laws.update import GRID_MODES, GridMode, Survival

DECOMPOSED = ("forget_loss", "retain_loss", "M1", "M2", "M4")
RECOVERED = ("M1", "M2", "forget_loss")


def decompose(
    meter: Meter, states: tuple[State, State, State, State], format_name: str, known: Mapping[str, Items]
) -> list[Measurement]:
    """Return rows of T14 and T16 for one unlearned model under one format.

    Rows of its weights are among them where no format of ours has the same values: the audit's code cannot measure those.

    Args:
        meter: meter of the two mixed models.
        states: (target, unlearned, Q(target), Q(unlearned)).
        format_name: name of the format.
        known: items of "target", "unlearned", "Q(target)" and "Q(unlearned)".
    """
    shell = meter.shell
    mixed = hybrid_states(shell.names, *states)
    if isinstance(states[2], RuntimeState):
        mixed["Q(target)+delta"] = states[2].with_weights(mixed["Q(target)+delta"])
    measured = {name: meter.measure(state, DECOMPOSED) for name, state in mixed.items()}
    rows = [
        Measurement(f"{m.metric}@{name}", m.value, m.stderr, m.n, m.items)
        for name, ms in measured.items()
        for m in ms.values()
    ]
    if ours_of(format_name) is None:
        rows += values_rows(shell.names, *states)
    items = {**known, **{name: {k: m.items or () for k, m in ms.items()} for name, ms in measured.items()}}
    for metric in DECOMPOSED:
        rows += effects(metric, items)
    return rows + [recovered(metric, items) for metric in RECOVERED]


def values_rows(
    names: Sequence[str], target: State, unlearned: State, q_target: State, q_unlearned: State
) -> list[Measurement]:
    """Return what survives in the values of the named weights: gain, cosine, value_changes, unchanged_fraction.

    Nothing is said of codes and of grids, which the values do not tell. Sums are float64, over D = Q(unlearned) - Q(target)
    and delta = unlearned - target.
    """
    weights = unchanged = changes = 0
    delta_sq = surviving_sq = dot = 0.0
    for name in names:
        delta = unlearned[name].double() - target[name].double()
        before, after = q_target[name], q_unlearned[name]
        survived = after.double() - before.double()
        weights += delta.numel()
        unchanged += int((unlearned[name] == target[name]).sum())
        changes += int((after != before).sum())
        delta_sq += float((delta * delta).sum())
        surviving_sq += float((survived * survived).sum())
        dot += float((survived * delta).sum())
    sums = Survival(weights, unchanged, 0, changes, 0.0, 0.0, delta_sq, surviving_sq, dot, ())
    values = (
        ("gain", sums.gain),
        ("cosine", sums.cosine),
        ("value_changes", sums.value_changes),
        ("unchanged_fraction", sums.unchanged_fraction),
    )
    return [Measurement(name, value, None, weights) for name, value in values]


def weights_rows(survival: Survival, mode: GridMode) -> list[Measurement]:
    """Return what survives in the weights under one format, as measurements; names end in @fixed for the fixed grid.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode not in GRID_MODES:
        raise ValueError(f"mode must be one of {', '.join(GRID_MODES)}, got mode={mode!r}")
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
