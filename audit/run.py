"""One audit from paths to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from unforgotten.audit.codes.compare import ArtefactLeg, compare_codes, scheme_of_checkpoint
from unforgotten.audit.codes.gguf import compare_gguf_codes, is_quantized_gguf
from unforgotten.audit.deployed.measure import DeployedLeg, measure_deployed
from unforgotten.audit.deployed.stored import Artefact, check_not_quantized, open_deployed
from unforgotten.audit.deployed.told import deployed_findings, deployed_object
from unforgotten.audit.findings.recipe import Recipe
from unforgotten.audit.mixes.mix import check_name
from unforgotten.audit.outputs.place import check_out
from unforgotten.audit.outputs.result import AuditResult, build_code_result, build_result
from unforgotten.audit.outputs.result_rows import TensorRow, code_rows, tensor_rows
from unforgotten.audit.outputs.write import write_audit
from unforgotten.audit.progress.stages import SILENT, Progress, Step
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.gguf import GgufCheckpoint
from unforgotten.audit.sources.matching.kinds import is_vocabulary
from unforgotten.audit.sources.matching.view import inner_of
from unforgotten.audit.sources.open import open_pair
from unforgotten.audit.sources.pairing import pair
from unforgotten.audit.verdict.gate import check_codes
from unforgotten.audit.verdict.legs import BehaviourLeg, OutputLeg
from unforgotten.audit.weights.leg import WeightsLeg, weights_leg

DEFAULT_FORMATS = ("int4-g64", "int4-row", "nf4-b64", "fp4-b64", "int8-row")
STAGES = ("open", "weights", "findings and files")
DEPLOYED = "deployed"
"""What an audit says it is at, in this order, DEPLOYED after the weights where it was asked for; the legs that measure
models are named by who measures them."""


def audit_pair(
    target: Path,
    unlearned: Path,
    formats: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress = SILENT,
    *,
    jobs: int = 1,
    ray: str | None = None,
    output: Callable[[], OutputLeg] | None = None,
    behaviour: Callable[[], BehaviourLeg] | None = None,
    recipe: Recipe | None = None,
    force: bool = False,
    called: tuple[str, str] | None = None,
    fatal: Sequence[str] = (),
    take_rows: Callable[[Sequence[TensorRow]], object] | None = None,
    deployed: tuple[str, str] | None = None,
) -> AuditResult:
    """Compare two checkpoints and, if `out` is given, write the files of the audit there.

    Args:
        target: the checkpoint before unlearning, see `open_source` for what it may be.
        unlearned: the checkpoint after unlearning.
        formats: names of formats; DEFAULT_FORMATS if None. A pair that is quantized already has its own and takes no
            others, but for GGUF: with formats its decoded values are quantized again, without them its codes are
            counted.
        out: the directory to write to; made if it is missing, and only once the audit is done.
        progress: progress that is told each of STAGES.
        jobs: processes that share the tensors, >= 1.
        ray: address of a Ray cluster that shares them instead.
        output: function that measures the output leg; called once the weights were read.
        behaviour: function that measures the behaviour leg; called once the weights were read.
        recipe: recipe of the training, where it is known; without it the theory predicts nothing.
        force: True where `out` may be a directory of other files.
        fatal: words of a gate, refused where the pair could say none of them.
        called: names of the two sides in the result, where their paths say nothing.
        take_rows: function that is given the rows of the tensors, which the result does not hold.
        deployed: the two models as they were really quantized, each what `open_source` opens.

    Raises:
        ValueError: the input breaks a rule (`CheckpointError`), a format is unknown, both sides are one, or `out` is a
            file or holds what is not an audit's.
    """
    if out is not None:
        check_out(out, force=force)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got jobs={jobs}")
    for name in formats or ():
        check_name(name)
    _check_two(target, unlearned)
    opening, weighing, ending = STAGES
    with progress.stage(opening):
        before, after = open_pair(target, unlearned)
        shipped = None if deployed is None else _open_deployed(deployed, before, after)
    with progress.stage(weighing, "tensors") as step:
        leg = _weights(before, after, formats, step, jobs=jobs, ray=ray)
    if isinstance(leg, ArtefactLeg):
        check_codes(fatal)
    if isinstance(leg, ArtefactLeg) and (output is not None or behaviour is not None):
        rule = "output and behaviour must be measured on models that are not quantized already"
        raise ValueError(f"{rule}, got {'+'.join(leg.by_format)}")
    real = None
    if shipped is not None:
        with progress.stage(DEPLOYED, "tensors") as step:
            real = _measured(before, after, shipped, step)
    said = None if output is None else output()
    done = None if behaviour is None else behaviour()
    with progress.stage(ending):
        if isinstance(leg, ArtefactLeg):
            if leg.method == "gguf":  # its codes are those of the files, not of what is seen of them
                before, after = inner_of(before), inner_of(after)
            result, rows = build_code_result(before, after, leg), code_rows(leg)
        else:
            result, rows = build_result(before, after, leg, said, done, recipe), tensor_rows(leg)
        if real is not None:
            result["deployed"] = told = deployed_object(real)
            result["findings"] += deployed_findings(told)
        if called is not None:
            result["target"]["source"], result["unlearned"]["source"] = called
        if take_rows is not None:
            take_rows(rows)
        if out is not None:
            result["files"] = write_audit(result, rows, out)
    return result


def _weights(
    before: Checkpoint, after: Checkpoint, formats: Sequence[str] | None, step: Step, *, jobs: int, ray: str | None
) -> ArtefactLeg | WeightsLeg:
    """Return what the weights show: the codes of a pair that is quantized already, else the leg in each format."""
    codes = _code_leg(before, after, formats)
    if codes is not None:
        return codes

    def tell(name: str, done: int, total: int) -> None:
        step(done, total, ascii(name))

    named = DEFAULT_FORMATS if formats is None else formats
    leg = weights_leg(before, after, named, tell, jobs=jobs, ray=ray)
    total = len(leg.kept) + len(leg.tensors) + len(leg.vocabulary)
    step(total, total)
    return leg


def _open_deployed(
    sources: tuple[str, str], before: Checkpoint, after: Checkpoint
) -> tuple[tuple[Artefact, Artefact], tuple[str, ...]]:
    """Return the quantized files, and the names of the matrices that every quantizer touches."""
    check_not_quantized((before, after))
    found = pair(before, after)
    vocabulary = tuple(name for name in found.kept if is_vocabulary(name, before.tensors[name].shape))
    return open_deployed(sources, (before, after), found.quantized, vocabulary), found.quantized


def _measured(
    before: Checkpoint, after: Checkpoint, shipped: tuple[tuple[Artefact, Artefact], tuple[str, ...]], step: Step
) -> DeployedLeg:
    files, names = shipped

    def tell(name: str, done: int, total: int) -> None:
        step(done, total, ascii(name))

    leg = measure_deployed((before, after), files, names, tell)
    step(len(leg.tensors), len(leg.tensors))
    return leg


def _check_two(target: Path, unlearned: Path) -> None:
    """Refuse a pair whose two sides are one: it has no update, and every format would look harmless."""
    paths = Path(target), Path(unlearned)
    same = os.path.samefile(*paths) if all(os.path.exists(p) for p in paths) else str(target) == str(unlearned)
    if same:
        raise ValueError(f"unlearned must be another checkpoint than target, got {str(unlearned)!r} for both")


def _code_leg(before: Checkpoint, after: Checkpoint, formats: Sequence[str] | None) -> ArtefactLeg | None:
    """Return the codes of a pair that is quantized already; None of one whose weights are compared."""
    files = [inner_of(checkpoint) for checkpoint in (before, after)]
    if isinstance(files[0], GgufCheckpoint) and isinstance(files[1], GgufCheckpoint):
        quantized = is_quantized_gguf(files[0]) or is_quantized_gguf(files[1])
        return compare_gguf_codes(files[0], files[1]) if quantized and formats is None else None
    if scheme_of_checkpoint(before) is None:
        return None
    if formats is not None:
        rule = "formats must not be named for a pair that is quantized already: its own codes are counted"
        raise ValueError(f"{rule}, got formats={','.join(formats)}")
    return compare_codes(before, after)
