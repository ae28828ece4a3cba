"""What other people's quantizers leave of bf16 updates in the files they write, beside our formats of their names, over seeds.

print(deployed_tables(Evidence(Path("reports/published")))[0].text)
"""

from __future__ import annotations

from collections.abc import Sequence

from unforgotten.reports.markdown import table
from unforgotten.reports.verdicts.claim import Table, number
from unforgotten.reports.verdicts.evidence import Evidence, StudyRow, over_seeds

STUDY = "deployed-files"


def deployed_tables(evidence: Evidence) -> tuple[Table, ...]:
    """Return the table of gains; none where the study is not published."""
    rows = [row for row in evidence.study(STUDY) if row["storage"] == "bf16"]
    about = f"Files of other people's quantizers, of bf16 models of `make demo`: the gain that the audit reads from them ([all]({STUDY}/table.md))"
    return (Table(about, deployed_table(rows)),) if rows else ()


def deployed_table(rows: Sequence[StudyRow]) -> str:
    """Return a line for each tool and method, over the seeds of the rows."""
    lines = []
    for name, method in dict.fromkeys((row["written_by"], row["method"]) for row in rows):
        own = [row for row in rows if (row["written_by"], row["method"]) == (name, method)]
        theirs, ours = (over_seeds((row["seed"], row[key]) for row in own) for key in ("gain", "ours_gain"))
        lines.append((name, method, theirs.text(number), ours.text(number), own[0]["ours"], str(theirs.seeds)))
    return table(("written by", "method", "gain", "gain of ours", "our format", "seeds"), lines)
