"""The files of an audit, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unforgotten.audit.html import render
from unforgotten.audit.result import HTML_FILE, JSON_FILE, TENSORS_FILE, AuditResult, TensorRow

COLUMNS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("dtype_target", pa.string(), nullable=False),
        pa.field("dtype_unlearned", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("grid", pa.string(), nullable=False),
        pa.field("weights", pa.int64(), nullable=False),
        pa.field("unchanged", pa.int64(), nullable=False),
        pa.field("code_flips", pa.int64(), nullable=False),
        pa.field("value_changes", pa.int64(), nullable=False),
        pa.field("expected_flips", pa.float64(), nullable=False),
        pa.field("gain", pa.float64()),
        pa.field("gain_stderr", pa.float64()),
        pa.field("cosine", pa.float64()),
        pa.field("position_ks", pa.float64()),
        pa.field("position_p", pa.float64()),
        pa.field("wash_z", pa.float64()),
        pa.field("wash_p", pa.float64()),
    ]
)


def write_audit(result: AuditResult, rows: Sequence[TensorRow], out: Path) -> None:
    """Write `audit.html`, `tensors.parquet` and, last, `audit.json` to the directory `out`, made if it is missing.

    Each file is built beside its place and moved there, so a reader sees the old one or the new one. A failure while
    building leaves all of them as they were.
    """
    contents: Mapping[str, Callable[[Path], object]] = {
        HTML_FILE: lambda path: path.write_text(render(result, rows), "utf-8", "xmlcharrefreplace"),
        TENSORS_FILE: lambda path: pq.write_table(_table(rows), path),
        JSON_FILE: lambda path: path.write_text(to_json(result), encoding="utf-8"),
    }
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".audit-", dir=out) as building:
        for name, write in contents.items():
            write(Path(building) / name)
        for name in contents:
            os.replace(Path(building) / name, out / name)


def to_json(result: AuditResult) -> str:
    """The text of `audit.json`; no nan, no inf."""
    return json.dumps(result, indent=2, allow_nan=False) + "\n"


def _table(rows: Sequence[TensorRow]) -> pa.Table:
    return pa.Table.from_pylist([_flat(row) for row in rows], schema=COLUMNS)


def _flat(row: TensorRow) -> dict[str, object]:
    ratios = {
        "position_ks": row["position"]["ks"],
        "position_p": row["position"]["p"],
        "wash_z": row["wash"]["z"],
        "wash_p": row["wash"]["p"],
    }
    return {**{key: value for key, value in row.items() if key in COLUMNS.names}, **ratios}
