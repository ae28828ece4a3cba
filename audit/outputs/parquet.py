"""`tensors.parquet`: one row a tensor, format and grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from unforgotten.audit.outputs.result_rows import TensorRow

COLUMNS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("dtype_target", pa.string(), nullable=False),
        pa.field("dtype_unlearned", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("grid", pa.string(), nullable=False),
        pa.field("weights", pa.int64(), nullable=False),
        pa.field("unchanged", pa.int64()),
        pa.field("code_flips", pa.int64(), nullable=False),
        pa.field("value_changes", pa.int64(), nullable=False),
        pa.field("expected_flips", pa.float64()),
        pa.field("gain", pa.float64()),
        pa.field("gain_stderr", pa.float64()),
        pa.field("cosine", pa.float64()),
        pa.field("position_ks", pa.float64()),
        pa.field("position_p", pa.float64()),
        pa.field("wash_z", pa.float64()),
        pa.field("wash_p", pa.float64()),
    ]
)


def table(rows: Sequence[TensorRow]) -> pa.Table:
    """Return the rows as a table of COLUMNS; what has no value is null."""
    return pa.Table.from_pylist(flat_rows(rows), schema=COLUMNS)


def flat_rows(rows: Sequence[TensorRow]) -> list[dict[str, Any]]:
    """Return the rows as dicts of COLUMNS, in their order; what has no value is None."""
    return [_flat(row) for row in rows]


def _flat(row: TensorRow) -> dict[str, Any]:
    ratios = {
        "position_ks": row["position"]["ks"],
        "position_p": row["position"]["p"],
        "wash_z": row["wash"]["z"],
        "wash_p": row["wash"]["p"],
    }
    values = {**row, **ratios}
    return {name: values[name] for name in COLUMNS.names}
