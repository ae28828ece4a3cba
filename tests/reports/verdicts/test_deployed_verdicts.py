"""The table of other people's quantizers holds a line for each tool and method, over the seeds of bf16 models alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unforgotten.reports.verdicts.deployed import deployed_tables
from unforgotten.reports.verdicts.evidence import Evidence


def row(seed: int, gain: float, **changed: Any) -> dict[str, Any]:
    plain = {"written_by": "tool", "method": "GA", "storage": "bf16", "ours": "int4-g64", "ours_gain": 0.5}
    return plain | {"seed": seed, "gain": gain} | changed


def test_gains_are_means_over_seeds_of_bf16_models(tmp_path: Path) -> None:
    rows = [
        *(row(0, 0.25), row(1, 0.75), row(1, 9.0, storage="fp32")),
        *(row(0, 0.125, method="NPO"), row(0, 0.375, written_by="another", ours="q4_0")),
    ]
    (tmp_path / "deployed-files").mkdir()
    (tmp_path / "deployed-files/rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (told,) = deployed_tables(Evidence(tmp_path))
    lines = told.text.splitlines()
    assert lines[2] == "| tool | GA | 0.50 [-2.68, 3.68] | 0.50 [0.50, 0.50] | int4-g64 | 2 |"
    assert lines[3].startswith("| tool | NPO | 0.12 (one seed) |")
    assert lines[4] == "| another | GA | 0.38 (one seed) | 0.50 (one seed) | q4_0 | 1 |"
    assert len(lines) == 5


def test_without_rows_nothing_is_said(tmp_path: Path) -> None:
    assert deployed_tables(Evidence(tmp_path)) == ()
