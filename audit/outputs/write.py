"""The files of an audit, written together or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from unforgotten.audit.outputs.html import render
from unforgotten.audit.outputs.junit import render_junit
from unforgotten.audit.outputs.model_card import render_model_card
from unforgotten.audit.outputs.parquet import table
from unforgotten.audit.outputs.result import HTML_FILE, JSON_FILE, TENSORS_FILE, AuditResult
from unforgotten.audit.outputs.result_rows import TensorRow
from unforgotten.audit.outputs.sarif import render_sarif
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.records.files import drop_kept, write_together

CARD_FILE = "model-card.md"
SARIF_FILE = "audit.sarif"
JUNIT_FILE = "audit.junit.xml"
FILES = (HTML_FILE, TENSORS_FILE, CARD_FILE, SARIF_FILE, JUNIT_FILE, JSON_FILE)
UNFINISHED = "unfinished"
"""Directory in that of an audit, of what its models answered until now; it goes when the audit is done."""


def write_audit(result: AuditResult, rows: Sequence[TensorRow], out: Path) -> dict[str, str]:
    """Write FILES to the directory `out`, made if it is missing; returns the SHA-256 of all but `audit.json`.

    All or none, see `write_together`. `audit.json` comes last: where a killed process leaves a mix, it names the others'
    SHA-256, so `check_files` finds it.
    """
    builders: Mapping[str, Callable[[Path], object]] = {
        HTML_FILE: lambda path: path.write_text(render(result, rows), "utf-8", "xmlcharrefreplace"),
        TENSORS_FILE: lambda path: pq.write_table(table(rows), path),
        CARD_FILE: lambda path: path.write_text(render_model_card(result), encoding="utf-8"),
        SARIF_FILE: lambda path: path.write_text(render_sarif(result), encoding="utf-8"),
        JUNIT_FILE: lambda path: path.write_text(render_junit(result), encoding="utf-8"),
    }
    sums: dict[str, str] = {}

    def build(folder: Path) -> None:
        for name, write in builders.items():
            write(folder / name)
            sums[name] = _sha256(folder / name)
        (folder / JSON_FILE).write_text(to_json({**result, "files": sums}), encoding="utf-8")

    write_together(out, FILES, build)
    drop_kept(out / UNFINISHED)
    return sums


def check_files(out: Path) -> None:
    """Compare the files of an audit with the SHA-256 that its `audit.json` names.

    Raises:
        CheckpointError: one is missing or another, as after a power cut while they were written.
    """
    result = json.loads((out / JSON_FILE).read_text(encoding="utf-8"))
    for name, wanted in result["files"].items():
        path = out / Path(name).name
        got = _sha256(path) if path.is_file() else "none"
        if got != wanted:
            raise CheckpointError(path, f"must have the SHA-256 of {JSON_FILE}, {wanted}", got)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def to_json(result: Mapping[str, object]) -> str:
    """Return the text of `audit.json`; no nan, no inf."""
    return json.dumps(result, indent=2, allow_nan=False) + "\n"
