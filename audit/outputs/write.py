"""The files of an audit, written together or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
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

CARD_FILE = "model-card.md"
SARIF_FILE = "audit.sarif"
JUNIT_FILE = "audit.junit.xml"
BUILDING = ".audit-"  # begins the name of the directory that files are built in
FILES = (HTML_FILE, TENSORS_FILE, CARD_FILE, SARIF_FILE, JUNIT_FILE, JSON_FILE)


def write_audit(result: AuditResult, rows: Sequence[TensorRow], out: Path) -> dict[str, str]:
    """Write FILES to the directory `out`, made if it is missing; returns the SHA-256 of all but `audit.json`.

    All are built beside their places first: what fails there, as a full disk does, leaves the old files. Then they are
    moved, `audit.json` last; if a move fails or is interrupted, those that were made are taken back. Each file is the
    old or the new one at any time. Only a killed process or a lost machine can leave a mix, and `audit.json` names
    the others' SHA-256, so `check_files` finds it.
    """
    builders: Mapping[str, Callable[[Path], object]] = {
        HTML_FILE: lambda path: path.write_text(render(result, rows), "utf-8", "xmlcharrefreplace"),
        TENSORS_FILE: lambda path: pq.write_table(table(rows), path),
        CARD_FILE: lambda path: path.write_text(render_model_card(result), encoding="utf-8"),
        SARIF_FILE: lambda path: path.write_text(render_sarif(result), encoding="utf-8"),
        JUNIT_FILE: lambda path: path.write_text(render_junit(result), encoding="utf-8"),
    }
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=BUILDING, dir=out) as building:
        for name, write in builders.items():
            write(Path(building) / name)
        sums = {name: _sha256(Path(building) / name) for name in builders}
        whole = to_json({**result, "files": sums})
        (Path(building) / JSON_FILE).write_text(whole, encoding="utf-8")
        _move_all(Path(building), out)
    return sums


def _move_all(building: Path, out: Path) -> None:
    """Move FILES to `out`, keeping the old ones under another name until all are there."""
    old = building / "old"
    old.mkdir()
    for name in FILES:
        if (out / name).exists():
            os.link(out / name, old / name)
    try:
        for name in FILES:
            os.replace(building / name, out / name)
    except BaseException:
        for name in FILES:
            if (old / name).exists():
                os.replace(old / name, out / name)
            else:
                (out / name).unlink(missing_ok=True)
        raise


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
