"""`tensors.parquet`: one row a tensor, format and grid."""

from __future__ import annotations

from collections.abc import Sequence

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
    return pa.Table.from_pylist([_flat(row) for row in rows], schema=COLUMNS)


def _flat(row: TensorRow) -> dict[str, object]:
    ratios = {
        "position_ks": row["position"]["ks"],
        "position_p": row["position"]["p"],
        "wash_z": row["wash"]["z"],
        "wash_p": row["wash"]["p"],
    }
    return {**{key: value for key, value in row.items() if key in COLUMNS.names}, **ratios}
