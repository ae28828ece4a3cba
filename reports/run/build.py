"""Rows in, one self-contained page out, with the headline figure and the checksums beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from unforgotten.records.files import write_bytes
from unforgotten.records.rows import Run, read_run
from unforgotten.reports.run.headline import headline_figure
from unforgotten.reports.run.page import draw_figures, render_page
from unforgotten.reports.style import render_png


def build_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the report of the runs in `folders` to `out`; the same rows give the same bytes.

    A run that kept weights at several depths is shown once for each. Beside the page: `headline.svg` and `headline.png` of
    the first run, at the first of its depths (neither where its rows have nothing to draw), and
    `<name>.sha256.json` with the SHA-256 of the rows and of every file written.

    Args:
        folders: directories that hold `rows.jsonl`, one of each run.
        out: path of the page. Its folder is made if it does not exist.

    Returns:
        `out`.

    Raises:
        ValueError: there is no folder, or one does not hold rows as specified; one line that says where and why.
    """
    if not folders:
        raise ValueError("folders must name at least one run, got none")
    if out.is_dir():
        raise ValueError(f"out must be the path of a file, got a directory: {out}")
    runs = [run for folder in folders for run in read_run(folder).by_depth()]
    figures = [draw_figures(run) for run in runs]
    written = {
        "headline.svg": figures[0].get("headline"),
        "headline.png": render_png(headline_figure, runs[0]),
        out.name: render_page(runs, figures).encode(),
    }
    written[f"{out.stem}.sha256.json"] = _checksums(runs, written)
    for name, content in written.items():
        _replace(out.parent / name, content)
    return out


def _checksums(runs: Sequence[Run], written: dict[str, bytes | None]) -> bytes:
    content = {
        "schema": "unforgotten.report/1",
        "rows": [{"run": run.label, "config": run.rows[0].config, "sha256": run.sha256} for run in runs],
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in written.items() if data is not None},
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _replace(path: Path, content: bytes | None) -> None:
    """Write the file in one step; without content, remove what an earlier report left there."""
    if content is None:
        path.unlink(missing_ok=True)
        return
    write_bytes(path, content)
