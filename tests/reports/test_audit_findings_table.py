"""The published rows of the audit's findings meet what is claimed of them, and their table counts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unforgotten.experiments.studies import audit_findings
from unforgotten.records.files import read_json_lines
from unforgotten.reports.studies.audit_findings import HONEST, ROWS_FILE, findings_table

FOLDER = Path(__file__).parents[2] / "reports/published/audit-findings"


def test_rows_hold_what_the_issue_asks_for() -> None:
    rows = read_json_lines(FOLDER / ROWS_FILE)
    honest = [r for r in rows if r["kind"] in HONEST]
    assert len(honest) >= 1000
    assert {r["kind"] for r in honest} == set(HONEST)
    zones = {
        s: [r["dead_zone"] for r in rows if r["kind"] == "unlearning" and r["storage"] == s] for s in ("bf16", "fp32")
    }
    assert min(map(len, zones.values())) >= 20
    assert all(zones["bf16"])
    assert not any(zones["fp32"])
    washed = [r for r in rows if r["kind"] == "washed"]
    assert all(r["wash"] and r["largest_z"] < -50 for r in washed)
    assert len({tuple(r["sha256"]) for r in rows}) == len(rows)


def test_an_arm_is_known_by_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_findings, "measure", lambda first, second: {})
    storages = ("bf16", "bf16-sr")
    rows = [{"method": "NPO_KLR", "storage": s, "lr": lr} for s, lr in zip(storages, (1, 2), strict=True)]
    target = {"method": None, "storage": None, "lr": None}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [target, *rows]))
    for name in ("target", *(f"unlearned-NPO_KLR-{s}" for s in storages)):
        (tmp_path / "models" / name).mkdir(parents=True)
    found = [(r["kind"], r["storage"], r["lr"]) for r in audit_findings.run_rows(tmp_path)]
    assert found == [("unlearning", "bf16", 1), ("unlearning", "bf16-sr", 2), ("training", None, None)]


@pytest.mark.parametrize("alarms", [0, 3])
def test_table_counts_alarms(alarms: int) -> None:
    rows = read_json_lines(FOLDER / ROWS_FILE)[:40]
    for row in rows[:alarms]:
        row["wash"] = [{"format": "int4-g64"}]
    honest = [r for r in rows if r["kind"] in HONEST]
    line = next(x for x in findings_table(rows).splitlines() if x.startswith("| all |"))
    assert line.split("|")[3:6:2] == [f" {len(honest)} ", f" {alarms} "]
