"""The published bench of the audit has as many rounds as it says."""

from __future__ import annotations

from pathlib import Path

from unforgotten.records.files import read_json_lines

BENCH = Path(__file__).parents[2] / "reports" / "published" / "audit-cost"


def test_bench_is_of_five_rounds() -> None:
    for row in read_json_lines(BENCH / "rows.jsonl"):
        rounds = {len(times) for times in row["seconds"].values()}
        assert rounds == {5}
