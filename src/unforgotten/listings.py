"""The commands that list what exists."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unforgotten.printing import print_mapping

Json = Annotated[bool, typer.Option("--json", help="Print the result object on standard output.")]


def formats(as_json: Json = False) -> None:
    """List the quantization formats: ours, which every command takes; mixes of them, for an audit; those of a run alone."""
    from unforgotten.experiments.quantizers.registry import known_formats
    from unforgotten.theory.formats.names import FAMILIES, MIXES

    known = known_formats()
    ours = {name: known[name] for name in FAMILIES}
    print_mapping("format", {**ours, **MIXES, **known}, as_json)


def methods(as_json: Json = False) -> None:
    """List the unlearning methods."""
    from unforgotten.experiments.methods.registry import METHODS

    print_mapping("method", {name: f"{m.statement} ({m.source})" for name, m in METHODS.items()}, as_json)


def models(as_json: Json = False) -> None:
    """List the base models that a run may begin with, as `base.kind`."""
    from unforgotten.experiments.models.bases.registry import BASES

    print_mapping("model", {name: base.statement for name, base in BASES.items()}, as_json)


def corpora(as_json: Json = False) -> None:
    """List the data sets that a run may take its text from, as `corpus.kind`, and what each can forget, as `corpus.split`."""
    from unforgotten.experiments.data.registry import CORPORA

    def said(splits: tuple[str, ...]) -> str:
        return f"; splits: {', '.join(splits)}" if splits else ""

    print_mapping(
        "corpus", {name: f"{c.statement} ({c.source}){said(c.splits)}" for name, c in CORPORA.items()}, as_json
    )


def metrics(as_json: Json = False) -> None:
    """List the metrics of a run's rows."""
    from unforgotten.experiments.metrics.registry import METRICS as MEASURED
    from unforgotten.records.metrics import METRICS

    print_mapping("metric", {**METRICS, **{name: m.meaning for name, m in MEASURED.items()}}, as_json)


def claims(as_json: Json = False) -> None:
    """Every statement: kind, source, tests, derivations and proofs, and what the recorded run of the suite said."""
    from unforgotten.verification.recording.recorded import claim_rows

    rows = claim_rows()
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("id", "kind", "statement", "source", "tests", "proofs", "verdict")
    for row in rows:
        proofs = ", ".join(sorted({p["method"] for p in row["proofs"]})) or "none"
        counts = (row["id"], row["kind"], row["statement"], row["source"])
        table.add_row(*map(Text, (*counts, str(len(row["tests"])), proofs, row["verdict"])))
    Console().print(table)


LISTINGS = (formats, methods, models, corpora, metrics, claims)
