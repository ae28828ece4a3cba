"""One audit from paths to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from unforgotten.audit.result import AuditResult, Overall, build_result, tensor_rows
from unforgotten.audit.sources import open_pair
from unforgotten.audit.weights import Progress, weights_leg
from unforgotten.audit.write import write_audit

DEFAULT_FORMATS = ("int4-g64", "int4-row", "nf4-b64", "fp4-b64", "int8-row")
VERDICTS: tuple[Overall, ...] = get_args(Overall)
Leg = Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None


def audit_pair(
    target: Path,
    unlearned: Path,
    formats: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    jobs: int = 1,
    ray: str | None = None,
    output: Leg = None,
    behaviour: Leg = None,
) -> AuditResult:
    """Compare two checkpoints and, if `out` is given, write the files of the audit there.

    Args:
        target: the checkpoint before unlearning, see `open_source` for what it may be.
        unlearned: the one after.
        formats: names of formats; DEFAULT_FORMATS if None.
        out: the directory to write to; made if it is missing, and only once the audit is done.
        progress: called before each tensor.
        jobs: processes that share the tensors, >= 1.
        ray: address of a Ray cluster that shares them instead.
        output: the output leg, or what measures it; called once the weights are measured.
        behaviour: the behaviour leg, likewise.

    Raises:
        ValueError: the input breaks a rule (`CheckpointError`), a format is unknown, or `out` is a file.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out must be a directory, got out={str(out)!r}")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got jobs={jobs}")
    split: dict[str, Any] = {} if jobs == 1 and ray is None else {"jobs": jobs, "ray": ray}
    before, after = open_pair(target, unlearned)
    leg = weights_leg(before, after, formats or DEFAULT_FORMATS, progress, **split)
    result = build_result(before, after, leg, _measured(output), _measured(behaviour))
    if out is not None:
        write_audit(result, tensor_rows(leg), out)
    return result


def _measured(leg: Leg) -> Mapping[str, Any] | None:
    return leg() if callable(leg) else leg
