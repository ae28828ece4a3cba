"""One audit from paths to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from unforgotten.audit.result import AuditResult, Overall, build_result, tensor_rows
from unforgotten.audit.sources import open_pair
from unforgotten.audit.weights import Progress, weights_leg
from unforgotten.audit.write import write_audit

DEFAULT_FORMATS = ("int4-g64", "int4-row", "nf4-b64", "fp4-b64", "int8-row")
VERDICTS: tuple[Overall, ...] = get_args(Overall)


def audit_pair(
    target: Path,
    unlearned: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    out: Path | None = None,
    progress: Progress | None = None,
) -> AuditResult:
    """Compare two checkpoints and, if `out` is given, write `audit.json`, `tensors.parquet` and `audit.html` there.

    Args:
        target: the checkpoint before unlearning, see `open_source` for what it may be.
        unlearned: the one after.
        formats: names of formats.
        out: the directory to write to; made if it is missing, and only once the audit is done.
        progress: called before each tensor.

    Raises:
        ValueError: the input breaks a rule (`CheckpointError`), a format is unknown, or `out` is a file.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out must be a directory, got out={str(out)!r}")
    before, after = open_pair(target, unlearned)
    leg = weights_leg(before, after, formats, progress)
    result = build_result(before, after, leg)
    if out is not None:
        write_audit(result, tensor_rows(leg), out)
    return result
