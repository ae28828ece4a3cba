"""An audit for a notebook: the object of `audit.json` as a dict that shows itself, with the table of its tensors.

found = PairAudit(result, rows)
found["verdict"]["overall"], found.tensors[0]["gain"]
found.to_pandas()  # pandas is loaded here, and nowhere else
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from typing import Any, cast

from rich.console import Console

from unforgotten.audit.outputs.answer import answer
from unforgotten.audit.outputs.page import page_environment
from unforgotten.audit.outputs.parquet import COLUMNS, flat_rows
from unforgotten.audit.outputs.result import AuditResult
from unforgotten.audit.outputs.result_rows import TensorRow
from unforgotten.audit.outputs.summary import print_summary
from unforgotten.records.extras import need

WIDTH = 100
"""Columns of the text; formats that need more take lines of their own."""


class PairAudit(dict[str, Any]):
    """The object of `audit.json`: a dict in all it does, but for how it is shown.

    Attributes:
        tensors: one dict a tensor, format and grid, with the columns of `tensors.parquet`; what has no value is None.
    """

    def __init__(self, result: AuditResult, rows: Sequence[TensorRow]) -> None:
        """Take over a result and the rows of its tensors."""
        super().__init__(result)
        self.tensors: list[dict[str, Any]] = flat_rows(rows)

    @property
    def _result(self) -> AuditResult:
        return cast("AuditResult", self)

    def __repr__(self) -> str:
        """Return what `unforgotten audit` prints, without colours."""
        stream = io.StringIO()
        print_summary(self._result, console=Console(file=stream, width=WIDTH, color_system=None, force_terminal=False))
        return stream.getvalue().rstrip("\n")

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Return the first screen of the page for a cell: no script, no network, every name escaped."""
        template = page_environment("unforgotten.audit").get_template("notebook.html.j2")
        return template.render(a=answer(self._result))

    def to_pandas(self) -> Any:
        """Return the tensors as a data frame.

        Raises:
            ValueError: pandas is missing.
        """
        need("pandas", "pandas")
        return importlib.import_module("pandas").DataFrame(self.tensors, columns=COLUMNS.names)
