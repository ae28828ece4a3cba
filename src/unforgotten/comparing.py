"""The command that sets several audits beside each other, and all that read results alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from unforgotten.judging import judge
from unforgotten.listings import Json


def compare(
    audits: Annotated[
        list[Path],
        typer.Argument(help="Folders of --out, audit.json, or judged.json of unforgotten judge.", metavar="AUDIT..."),
    ],
    by: Annotated[str, typer.Option(help="One ranking of all rows; or one an audit, or one a format.")] = "all",
    out: Annotated[Path | None, typer.Option(help="File for it: .html, .csv or .md.")] = None,
    as_json: Json = False,
) -> None:
    """Compare audits: what each keeps of forgetting in each format, per point of M4 that it lost, and who wins."""
    from unforgotten.audit.comparison.compare import compare as compared
    from unforgotten.audit.comparison.show import check_out, print_comparison, write_comparison

    if out is not None:
        check_out(out)
    found = compared(audits, by)
    if out is not None:
        write_comparison(found, out)
    if as_json:
        for warning in found["warnings"]:
            print(warning, file=sys.stderr)
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print_comparison(found)


OF_RESULTS = (judge, compare)
