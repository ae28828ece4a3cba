"""How often the audit's findings are right, as Markdown: from the rows that `experiments/studies/audit_findings.py` wrote.

`python -m unforgotten.reports.studies.audit_findings FOLDER` writes `FOLDER/table.md` from `FOLDER/findings.jsonl`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.shares import clopper_pearson

ROWS_FILE, TABLE_FILE = "findings.jsonl", "table.md"
HONEST: Mapping[str, str] = {
    "gaussian": "Gaussian updates, 0.001 to 0.3 standard deviations",
    "sign": "updates of one size, 0.001 to 0.3 standard deviations",
    "unlearning": "target and unlearned model of a run",
    "training": "any other two models of a run",
}
PLACED: Mapping[str, str] = {"washed": "clamped into NF4 cells", "aimed": "pushed toward NF4 thresholds"}
TAIL = 0.025


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of the findings on pairs from `folder/findings.jsonl`."""
    return [json.loads(line) for line in (folder / ROWS_FILE).read_text("utf-8").splitlines()]


def findings_table(rows: Sequence[dict[str, Any]]) -> str:
    """Three tables: false alarms on honest pairs, placed updates, and dead zones by the storage of the run."""
    return "\n\n".join([_honest(rows), _placed(rows), _dead_zones(rows), _steps(rows)]) + "\n"


def _honest(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| honest pairs | saved as | pairs | flagged by the count of flips alone | wash found | at most, at 95 % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    everything = [r for r in rows if r["kind"] in HONEST]
    for kind, words in HONEST.items():
        own = [r for r in everything if r["kind"] == kind]
        for storage in dict.fromkeys(r["storage"] for r in own):
            lines.append(_honest_line(words, storage or "any", [r for r in own if r["storage"] == storage]))
    return "\n".join([*lines, _honest_line("all", "any", everything)])


def _honest_line(words: str, storage: str, rows: Sequence[dict[str, Any]]) -> str:
    flagged = sum(bool(r["flagged"]) for r in rows)
    alarms = sum(bool(r["wash"]) for r in rows)
    return f"| {words} | {storage} | {len(rows)} | {flagged} | {alarms} | {_most(alarms, len(rows)):.1%} |"


def _most(hits: int, count: int) -> float:
    """Return the upper end of Clopper and Pearson's interval of a share; pairs of one run are not independent."""
    return clopper_pearson(hits, count, TAIL).high


def _placed(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| placed updates | pairs | wash found | z of a tensor |", "| --- | ---: | ---: | --- |"]
    for kind, words in PLACED.items():
        own = [r for r in rows if r["kind"] == kind]
        found = sum(bool(r["wash"]) for r in own)
        z = sorted(r["largest_z"] for r in own if r["largest_z"] is not None)
        span = f"{z[0]:.1f} to {z[-1]:.1f}" if z else "–"
        lines.append(f"| {words} | {len(own)} | {found} | {span} |")
    return "\n".join(lines)


def _dead_zones(rows: Sequence[dict[str, Any]]) -> str:
    own = [r for r in rows if r["kind"] == "unlearning"]
    lines = ["| update | pairs | dead zone found |", "| --- | ---: | ---: |"]
    for storage in sorted({r["storage"] for r in own}):
        arm = [r for r in own if r["storage"] == storage]
        lines.append(_zones_line(f"trained with parameters in {storage}", arm))
    single = [r for r in rows if r["kind"] in ("gaussian", "sign")]
    for storage in dict.fromkeys(r["storage"] for r in single):
        arm = [r for r in single if r["storage"] == storage]
        lines.append(_zones_line(f"made at once and saved in {storage}", arm))
    return "\n".join(lines)


def _zones_line(words: str, rows: Sequence[dict[str, Any]]) -> str:
    return f"| {words} | {len(rows)} | {sum(r['dead_zone'] for r in rows)} |"


def _steps(rows: Sequence[dict[str, Any]]) -> str:
    """Whether the range of learning rates that a dead zone leads to holds the run's."""
    own = [r for r in rows if r["kind"] == "unlearning" and r["dead_zone"]]
    lines = ["| range that is read from the dead zone | holds the run's lr | lies above it |"]
    lines.append("| --- | ---: | ---: |")
    for key, words in (
        ("typical_steps", "where half of the weights moved: the estimate of lr"),
        ("largest_steps", "where almost none moved: the largest steps"),
    ):
        holds = sum(r[key][0] <= r["lr"] <= r[key][1] for r in own)
        above = sum(r[key][0] > r["lr"] for r in own)
        lines.append(f"| {words} | {holds} of {len(own)} | {above} of {len(own)} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Write the table beside its rows."""
    (folder / TABLE_FILE).write_text(findings_table(read_rows(folder)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
