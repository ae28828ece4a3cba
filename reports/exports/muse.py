"""The table of MUSE: a line for each model, as its `eval.py --out_file` writes it.

M3 compares with the retrained model of the run, MUSE's `privleak` with a constant that its authors measured.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from unforgotten.reports.exports.measured_models import MeasuredModel

NAME = "muse"
STATEMENT = "muse.csv with name, verbmem_f, privleak, knowmem_f and knowmem_r, percent"
COLUMNS = {"verbmem_f": "M1", "privleak": "M3", "knowmem_f": "M2", "knowmem_r": "M4"}
FILE = "muse.csv"


def write(models: Sequence[MeasuredModel], folder: Path) -> None:
    """Write the table; a value that is undefined or was not measured stays empty."""
    with (folder / FILE).open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["name", *COLUMNS])
        for model in models:
            values = (model.value(metric) for metric in COLUMNS.values())
            table.writerow([model.name, *("" if value is None else repr(value) for value in values)])
