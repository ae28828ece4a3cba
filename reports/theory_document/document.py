"""The readable theory: `python -m unforgotten.reports.theory_document.document` writes theory/README.md and its pictures.

Words are in `templates/theory_*.md.j2`; statements, sources and proofs come from the registries, numbers from
`examples`, pictures from `pictures`. Needs a checkout and the extra `verify`.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.records.rows import read_run
from unforgotten.reports.run.conjectures import conjectures
from unforgotten.reports.studies.forecast import DIRECTIONS_FILE, growth, turn, turn_within
from unforgotten.reports.studies.gain_predictions import moved_beyond, prediction_table
from unforgotten.reports.theory_document.evidence import PARTS, calls, evidence, kinds
from unforgotten.reports.theory_document.examples import example, source
from unforgotten.reports.theory_document.examples_models import PUBLISHED
from unforgotten.reports.theory_document.pictures import PICTURES, picture_svg

CHAPTERS = ("overview", "geometry", "laws", "models", "limits", "symbols")
TITLES: Mapping[str, str] = {
    "T1": "Cells",
    "T2": "Scale drift",
    "T3": "Displacement sandwich",
    "T4": "Dead zone of storage",
    "T5": "Displacement by an optimizer",
    "T6": "Flip law",
    "T7": "Unbiased gating",
    "T8": "Energy and cosine",
    "T9": "Concentration helps",
    "T10": "Bits and blocks",
    "T11": "The biased regimes",
    "T12": "Wash test",
    "T13": "Linear response",
    "T14": "Factorial decomposition",
    "T15": "Output and metric bounds",
    "T16": "Recovery",
    "T17": "Data-aware rounding",
    "T18": "Gating certificate",
    "T19": "Dither certificate",
    "T20": "Functional gain",
    "T21": "Displacement by the second moment",
    "T22": "Minimax",
}


def document_text() -> str:
    """Return the theory document in GitHub's Markdown."""
    environment = Environment(
        loader=PackageLoader("unforgotten.reports"),
        undefined=StrictUndefined,
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        comment_start_string="[!#",
        comment_end_string="#!]",
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        titles=TITLES,
        kinds=kinds,
        calls=calls,
        evidence=evidence,
        example=example,
        source=source,
        picture=picture,
        c1_summary=c1_summary(),
        prediction_table=prediction_table,
        moved_beyond=moved_beyond,
        turn=turn,
        turn_within=turn_within,
        growth=growth,
        turned=by_method(read_json_lines(PUBLISHED / "forecast" / DIRECTIONS_FILE)),
        predicted=read_json_lines(PUBLISHED / "gain-predictions" / ROWS_FILE),
    )
    chapters = [environment.get_template(f"theory_{name}.md.j2").render() for name in CHAPTERS]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(chapters)).strip() + "\n"


def picture(claim_id: str, seen: str) -> str:
    """Return the Markdown of a statement's picture, with `seen` as its description."""
    return f"![{seen}](pictures/{claim_id}.svg)"


def c1_summary() -> str:
    """Say how many of the published runs confirm C1, refute it or leave it open."""
    folders = [config.parent for config in sorted(PUBLISHED.glob("*/config.json"))]
    runs = [run for folder in folders for run in read_run(folder).by_depth()]
    found = Counter(c.verdict for run in runs for c in conjectures(run) if c.name == "C1")
    said = " and ".join(f"{verdict} in {found[verdict]}" for verdict in sorted(found))
    return f"{said} of {len(runs)}".replace(" here", "")


def by_method(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group rows by method; under "every GA" and "every NPO" are those of all retain terms, but for the raw logits'."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["method"]].append(row)
        if not row["method"].endswith("rawlogits"):
            groups[f"every {row['method'].partition('_')[0]}"].append(row)
    return groups


def document_files() -> dict[str, bytes]:
    """Return all that is generated, by path in `theory/`."""
    pictures = {f"pictures/{name}.svg": picture_svg(name) for name in PICTURES}
    return {"README.md": document_text().encode(), **pictures}


def write_document(folder: Path) -> None:
    """Write the document and its pictures into a folder."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, content in document_files().items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    write_document(Path(sys.argv[1]) if len(sys.argv) > 1 else PARTS / "theory")
