"""Findings about which weights moved, and how they are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping

from unforgotten.audit.findings.recipe import Recipe
from unforgotten.audit.findings.row import FindingRow, finding, share_interval
from unforgotten.audit.findings.sentences import share, storage_sentences
from unforgotten.audit.findings.training_estimate import typical_steps
from unforgotten.audit.weights.leg import WeightsLeg
from unforgotten.theory.geometry.dead_zone import BINADES

SHORT_DTYPES: Mapping[str, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def storage_findings(leg: WeightsLeg, recipe: Recipe | None = None) -> list[FindingRow]:
    """Report that there is no update at all, the dead zone, and what storage did besides."""
    found = [*_no_update(leg), *_dead_zone(leg, recipe)]
    found += [finding("storage", "note", sentence) for sentence in storage_sentences(leg)]
    return [*found, *_kept(leg)]


def _no_update(leg: WeightsLeg) -> list[FindingRow]:
    total = leg.quantized
    if total.unchanged < total.weights:
        return []
    sentence = (
        f"Not one of the {total.weights:,} weights that quantizers touch differs between the two checkpoints: there is "
        "no update that a format could keep or lose."
    )
    row = finding("no-update", "warning", sentence, measure="share of unchanged weights", effect=1.0)
    return [row]


def _dead_zone(leg: WeightsLeg, recipe: Recipe | None) -> list[FindingRow]:
    """Report that large weights stood still: a warning where the recipe says that they were trained so, else a note."""
    zone = leg.dead_zone
    if not zone.detected:
        return []
    first = round(math.log2(zone.threshold))
    beyond = [i for i, e in enumerate(BINADES) if e >= first]
    weights = sum(leg.binades.weights[i] for i in beyond)
    moved = sum(leg.binades.moved[i] for i in beyond)
    still = share_interval(weights - moved, weights)
    trained_in = None if recipe is None else recipe["trained_in"]
    sentence = (
        f"Of the {weights:,} weights with |w| ≥ {zone.threshold:.2g}, {share(moved / weights)} moved, and "
        f"{share(leg.unchanged_fraction)} of all weights never did: {_why(leg, trained_in)}."
    )
    row = finding(
        "dead-zone",
        "warning" if trained_in is not None and SHORT_DTYPES.get(leg.precision) == trained_in else "note",
        sentence,
        measure="share of weights beyond the edge that never moved",
        effect=1 - moved / weights,
        interval=still,
    )
    return [row]


def _why(leg: WeightsLeg, trained_in: str | None) -> str:
    """Return what a dead zone comes of, as far as it is known."""
    short = SHORT_DTYPES.get(leg.precision, leg.precision)
    if short == "fp32":
        return "no step is rounded away there in fp32, so the update chose its weights by their size"
    if trained_in is None:
        return f"trained in {short}, or saved in {short} after fp32: the files cannot tell"
    if trained_in != short:
        return f"saved in {short} after {trained_in}, which rounds a small change of a large weight away"
    steps = typical_steps(leg) or leg.dead_zone.lr_estimate
    return (
        f"parameters kept in {leg.precision} round away steps of lr = {steps[0]:.1e} to {steps[1]:.1e} there, and the "
        f"largest steps up to {leg.dead_zone.lr_estimate[1]:.1e}"
    )


def _kept(leg: WeightsLeg) -> list[FindingRow]:
    kept = leg.left_alone
    changed = [name for name, differs in kept.items() if differs]
    if not changed:
        return []
    sentence = (
        f"{len(changed)} of the {len(kept)} tensors that quantizers leave alone changed too, among them "
        f"{changed[0]!a}: that part of the update is kept whole and counts in no gain."
    )
    row = finding(
        "kept-changed",
        "note",
        sentence,
        measure="share of the tensors that are kept",
        effect=len(changed) / len(kept),
        tensor=changed[0],
    )
    return [row]
