"""What `unforgotten audit --dry-run` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unforgotten.printing import need_extra, print_object


def print_plan(
    pair: tuple[Path, Path],
    formats: Sequence[str],
    texts: Path | None,
    benchmark: Path | None,
    retrained: Path | None,
    items: int | None,
    device: str,
    dtype: str,
    *,
    decompose: bool,
    real: bool,
    as_json: bool,
) -> None:
    """Print models, texts, memory and time of an audit; nothing is measured, and no weight is read.

    Raises:
        ValueError: a file breaks a rule, or an extra is missing; one line.
    """
    need_extra("experiments", "torch", "transformers", "rouge_score", "sklearn")
    import os

    from unforgotten.experiments.plan.audit import AuditAsked, as_object, lines, make_audit_plan
    from unforgotten.experiments.plan.rates import measure_rates

    asked = AuditAsked(
        pair, tuple(formats), texts, benchmark, retrained, items, device, dtype, decompose=decompose, real=real
    )
    plan = make_audit_plan(asked, measure_rates(os.cpu_count() or 1))
    print_object(as_object(plan), as_json, lines(plan))
