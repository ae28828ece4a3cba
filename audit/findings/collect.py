"""Every finding of an audit, the most important first."""

from __future__ import annotations

from collections.abc import Sequence

from unforgotten.audit.codes.compare import ArtefactLeg, CodeCounts
from unforgotten.audit.findings.advice import advice
from unforgotten.audit.findings.functional import functional_findings
from unforgotten.audit.findings.gain import gain_findings
from unforgotten.audit.findings.prediction import PredictionRow, disagreements
from unforgotten.audit.findings.probe import Sample
from unforgotten.audit.findings.recipe import Recipe
from unforgotten.audit.findings.retain import retain_findings
from unforgotten.audit.findings.row import FindingRow, Severity, finding, share_interval
from unforgotten.audit.findings.sentences import Judged, share
from unforgotten.audit.findings.spread import spread_findings
from unforgotten.audit.findings.storage import storage_findings
from unforgotten.audit.findings.wash import wash_findings
from unforgotten.audit.verdict.legs import BehaviourLeg, FunctionalLeg
from unforgotten.audit.weights.leg import WeightsLeg

ORDER: tuple[Severity, ...] = ("error", "warning", "note")


def all_findings(
    leg: WeightsLeg,
    judged: Sequence[Judged],
    samples: Sequence[Sample],
    prediction: Sequence[PredictionRow],
    recipe: Recipe | None = None,
    behaviour: BehaviourLeg | None = None,
    functional: FunctionalLeg | None = None,
) -> list[FindingRow]:
    """Return the findings of an audit, by severity and then in the order of what explains what."""
    gains = gain_findings(judged, samples)
    on_grid = {row["format"] for row in gains if row["id"] == "on-grid" and row["format"] is not None}
    found = [
        *retain_findings(behaviour),
        *gains,
        *functional_findings(functional),
        *storage_findings(leg, recipe),
        *wash_findings(leg, samples),
        *spread_findings(leg, judged, samples),
        *disagreements(prediction),
        *advice(leg, judged, prediction, recipe, on_grid),
    ]
    return sorted(found, key=lambda row: ORDER.index(row["severity"]))


def code_findings(leg: ArtefactLeg) -> list[FindingRow]:
    """Return what the codes of a pair that is quantized already show: whether the two deployed models differ at all."""
    changed = [name for name, differs in leg.kept.items() if differs]
    found = [_codes(name, counts) for name, counts in leg.by_format.items()]
    if not leg.total.value_changes and not leg.total.code_flips and not changed:
        sentence = (
            f"All {leg.total.weights:,} codes, their values and the {len(leg.kept)} other tensors are equal: the two "
            "quantized checkpoints are one and the same model."
        )
        equal = finding("codes-equal", "error", sentence, measure="share of codes that differ", effect=0.0)
        return [equal]
    if changed:
        sentence = (
            f"{len(changed)} of the {len(leg.kept)} tensors that are stored unquantized differ, among them "
            f"{changed[0]!a}."
        )
        found.append(
            finding(
                "kept-changed",
                "note",
                sentence,
                tensor=changed[0],
                measure="share of the tensors that are kept",
                effect=len(changed) / len(leg.kept),
            )
        )
    return found


def _codes(name: str, counts: CodeCounts) -> FindingRow:
    sentence = (
        f"{name}: {counts.code_flips:,} of {counts.weights:,} stored codes differ "
        f"({share(counts.code_flips / counts.weights)}), and {counts.value_changes:,} decoded values. What the update was "
        "before it was quantized is not in these files, so neither a gain nor a verdict follows."
    )
    return finding(
        "codes-differ",
        "note",
        sentence,
        measure="share of codes that differ",
        format=name,
        effect=counts.code_flips / counts.weights,
        interval=share_interval(counts.code_flips, counts.weights),
    )
