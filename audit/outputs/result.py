"""The result object of an audit, as `audit.json` holds it.

In go both checkpoints and the legs that were measured, out comes one object of plain types, which the page, the card and
the other files are made of:

    result = build_result(target, unlearned, weights_leg(target, unlearned, ["int4-g64"]))
    result["verdict"]["overall"]  # "undecided": the weights alone decide nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Literal, TypedDict

from unforgotten.audit.codes.compare import ArtefactLeg
from unforgotten.audit.deployed.told import Deployed
from unforgotten.audit.findings.collect import all_findings, code_findings
from unforgotten.audit.findings.coverage import coverage_findings, experts_notes, unmeasured
from unforgotten.audit.findings.functional import functional_of
from unforgotten.audit.findings.prediction import PredictionRow, predict_gains
from unforgotten.audit.findings.probe import look
from unforgotten.audit.findings.ran import ran_findings
from unforgotten.audit.findings.recipe import Recipe
from unforgotten.audit.findings.relation import norm_findings, relation_findings
from unforgotten.audit.findings.row import FindingRow
from unforgotten.audit.findings.sentences import Finding, judge_formats, overall_finding, reasons
from unforgotten.audit.findings.training_estimate import estimate_training, typical_steps
from unforgotten.audit.kernel.simd import NUMPY, processor
from unforgotten.audit.mixes.mix import is_mix
from unforgotten.audit.outputs.control import Control, control_of
from unforgotten.audit.outputs.result_rows import FormatRow, audited_formats, code_row, finite_or_none, format_row
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.notes import notes_of
from unforgotten.audit.verdict.legs import BehaviourLeg, OutputLeg
from unforgotten.audit.verdict.power import PowerRow, power_rows
from unforgotten.audit.verdict.rule import Decision, decide
from unforgotten.audit.weights.leg import WeightsLeg
from unforgotten.audit.weights.sums import Computed
from unforgotten.theory.geometry.dead_zone import BINADES

SCHEMA = "unforgotten.audit/1"
JSON_FILE = "audit.json"
TENSORS_FILE = "tensors.parquet"
HTML_FILE = "audit.html"


class Source(TypedDict):
    """Which checkpoint, bound to its bytes; `sha256` as in `Checkpoint.sha256`."""

    source: str
    revision: str | None
    sha256: str
    dtypes: list[str]


class FoundDeadZone(TypedDict):
    """T4; `lr_estimate` is (low, high), see `typical_steps`; `detected` is None where nothing is known of the update."""

    detected: bool | None
    threshold: float | None
    lr_estimate: list[float] | None


class Binade(TypedDict):
    """Weights with low <= |w| < 2 low, and how many of them moved."""

    low: float
    weights: int
    moved: int


class Storage(TypedDict):
    """How the unlearned weights are stored, and what that let move."""

    dtype: str
    precision: str
    unchanged_fraction: float | None
    dead_zone: FoundDeadZone
    binades: list[Binade]


class Coverage(TypedDict):
    """What the audit looked at: quantized tensors and their weights, and the tensors quantizers leave alone."""

    tensors: int
    weights: int
    kept: int
    kept_changed: list[str]


class AuditResult(TypedDict):
    """`audit.json`.

    `compared`: "weights", or "codes" where both sides are quantized already; then nothing is known of the update itself,
    and what would follow from it is None. `recipe`: how the unlearned model was trained, where that is known; `power`: how
    much the items of each leg could show; `deployed`: the pair as it was really quantized, where that was given; `control`: what of a standard this audit is evidence for; `notes`: how the files
    were read; `files`: SHA-256 of the other files that were written with this one.
    """

    schema: str
    version: str
    compared: Literal["weights", "codes"]
    computed: Computed
    target: Source
    unlearned: Source
    formats: list[FormatRow]
    tensors: str
    coverage: Coverage
    storage: Storage
    findings: list[FindingRow]
    prediction: list[PredictionRow]
    recipe: Recipe | None
    output: OutputLeg | None
    behaviour: BehaviourLeg | None
    verdict: Decision
    power: list[PowerRow]
    control: Control
    deployed: Deployed | None
    notes: list[str]
    files: dict[str, str]


def build_result(
    target: Checkpoint,
    unlearned: Checkpoint,
    leg: WeightsLeg,
    output: OutputLeg | None = None,
    behaviour: BehaviourLeg | None = None,
    recipe: Recipe | None = None,
) -> AuditResult:
    """Return the result of an audit; with the weights leg alone its verdict is always undecided."""
    judged = judge_formats(leg)
    names = [t.name for t in leg.tensors]
    samples = look(target, unlearned, names, [j.format for j in judged if not is_mix(j.format)])
    gains = [(j.format, finite_or_none(j.total.gain), finite_or_none(j.stderr)) for j in judged]
    prediction = predict_gains(estimate_training(leg, samples, recipe), samples, gains)
    layouts = relation_findings(target, unlearned, samples, leg.kept)
    other = [row for row in layouts if row["severity"] == "warning"]
    gaps = [*coverage_findings(target, leg.kept, moved=leg.unchanged_fraction < 1), *other]
    far = [row for row in layouts if row["severity"] == "note"]
    findings = [
        *gaps,
        *ran_findings(output, behaviour),
        *all_findings(leg, judged, samples, prediction, recipe, behaviour, functional_of(output, behaviour)),
        *far,
    ]
    rows = [format_row(setting, total, leg.parts(setting)) for setting, total in leg.totals.items()]
    word = _word(target, leg, overall_finding(judged))
    word = "unclear" if other and word == "passes" else word  # never in place of a word that a gate fails on
    decision = decide(word, output, behaviour, audited_formats(rows))
    return AuditResult(
        schema=SCHEMA,
        version=version("unforgotten"),
        compared="weights",
        computed=leg.computed,
        target=_source(target),
        unlearned=_source(unlearned),
        formats=rows,
        tensors=TENSORS_FILE,
        coverage=_coverage(len(leg.tensors), leg.quantized.weights, leg.kept),
        storage=_storage(leg),
        findings=findings,
        prediction=prediction,
        recipe=recipe,
        output=output,
        behaviour=behaviour,
        verdict=_verdict(decision, reasons(leg, judged, findings), gaps),
        power=power_rows(output, behaviour),
        control=control_of(output, behaviour),
        deployed=None,
        notes=[
            *notes_of(target, unlearned),
            *experts_notes(target, [t.name for t in leg.tensors], dict.fromkeys(j.format for j in judged)),
        ],
        files={},
    )


def build_code_result(target: Checkpoint, unlearned: Checkpoint, leg: ArtefactLeg) -> AuditResult:
    """Return the result of a pair that is quantized already: codes are counted, and nothing is known of the update."""
    seen = code_findings(leg)
    gaps = coverage_findings(target, leg.kept, moved=leg.total.value_changes > 0)
    gaps += norm_findings(target, unlearned, leg.kept)
    findings = [*gaps, *seen]
    word: Finding = "no update" if seen[0]["id"] == "codes-equal" else "unclear"
    formats = "+".join(leg.by_format)
    return AuditResult(
        schema=SCHEMA,
        version=version("unforgotten"),
        compared="codes",
        computed=Computed(path=NUMPY, processor=processor(), ways={}),
        target=_source(target),
        unlearned=_source(unlearned),
        formats=[code_row(name, counts) for name, counts in leg.by_format.items()],
        tensors=TENSORS_FILE,
        coverage=_coverage(len(leg.layers), leg.total.weights, leg.kept),
        storage=Storage(
            dtype=formats,
            precision=formats,
            unchanged_fraction=None,
            dead_zone=FoundDeadZone(detected=None, threshold=None, lr_estimate=None),
            binades=[],
        ),
        findings=findings,
        prediction=[],
        recipe=None,
        output=None,
        behaviour=None,
        verdict=_verdict(decide(word, None, None), [row["sentence"] for row in seen], gaps),
        power=[],
        control=control_of(None, None),
        deployed=None,
        notes=[*notes_of(target, unlearned), *leg.notes],
        files={},
    )


def _word(target: Checkpoint, leg: WeightsLeg, word: Finding) -> Finding:
    """Return the word of the weights; "no update" is not said where a tensor changed that is not measured."""
    hidden = any(leg.kept[name] for name in unmeasured(target, leg.kept))
    return "unclear" if word == "no update" and hidden else word


def _verdict(decision: Decision, weights: Sequence[str], gaps: Sequence[FindingRow]) -> Decision:
    """Return the decision with the reasons of the weights; what was not measured comes first of all.

    Where no leg but that of the weights was measured, the decision's own reasons come last.
    """
    own, first = decision["reasons"], [row["sentence"] for row in gaps]
    alone = decision["legs"]["output"] is None and decision["legs"]["behaviour"] is None
    told = [*weights, *own] if alone else [*own, *weights]
    return Decision(overall=decision["overall"], legs=decision["legs"], reasons=[*first, *told])


def _source(checkpoint: Checkpoint) -> Source:
    return Source(
        source=str(checkpoint.source),
        revision=checkpoint.revision,
        sha256=checkpoint.sha256(),
        dtypes=sorted({info.stored or info.dtype.name for info in checkpoint.tensors.values()}),
    )


def _coverage(tensors: int, weights: int, kept: Mapping[str, bool]) -> Coverage:
    changed = [name for name, differs in kept.items() if differs]
    return Coverage(tensors=tensors, weights=weights, kept=len(kept), kept_changed=changed)


def _storage(leg: WeightsLeg) -> Storage:
    zone, steps = leg.dead_zone, typical_steps(leg)
    counts = zip(BINADES, leg.binades.weights, leg.binades.moved, strict=True)
    return Storage(
        dtype=leg.storage_dtype,
        precision=leg.precision,
        unchanged_fraction=leg.unchanged_fraction,
        dead_zone=FoundDeadZone(
            detected=zone.detected,
            threshold=finite_or_none(zone.threshold),
            lr_estimate=None if steps is None else list(steps),
        ),
        binades=[Binade(low=2.0**e, weights=n, moved=moved) for e, n, moved in counts if n],
    )
