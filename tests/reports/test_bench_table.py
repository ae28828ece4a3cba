"""The published bench of the audit: its table is what its rows say."""

from __future__ import annotations

from pathlib import Path

from unforgotten.reports.studies.audit_cost import bench_table, read_bench

BENCH = Path(__file__).parents[2] / "reports" / "published" / "audit-cost"


def test_table_is_rendered_from_its_rows() -> None:
    assert (BENCH / "table.md").read_text() == bench_table(read_bench(BENCH))


def test_bench_is_of_five_rounds() -> None:
    for row in read_bench(BENCH):
        rounds = {len(times) for times in row["seconds"].values()}
        assert rounds == {5}
