"""The page: figures and tables of every run, put into the template. Every name in it is escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unforgotten.audit.outputs.page import page_environment
from unforgotten.records.metrics import METRICS
from unforgotten.records.rows import Run
from unforgotten.reports.run import over_runs, tables
from unforgotten.reports.run.conjectures import Conjecture, conjectures
from unforgotten.reports.run.figures import FIGURES
from unforgotten.reports.run.gates import forgetting_sentences, gate_checks, passed
from unforgotten.reports.run.over_runs_figure import predictions_figure
from unforgotten.reports.run.sentences import answer, headline_sentences
from unforgotten.reports.run.tables import Table
from unforgotten.reports.style import render_svg

FIGURE_TABLES: Mapping[str, Callable[[Run], Table]] = {
    "metrics": tables.metrics_table,
    "recovery": tables.recovery_table,
    "gain": tables.gain_table,
    "decomposition": tables.decomposition_table,
    "hybrids": tables.hybrid_table,
    "flips": tables.flips_table,
}


@dataclass(frozen=True)
class FigureView:
    """A figure as an image that is part of the page, and the table of its numbers."""

    svg: str | None
    table: Table | None


@dataclass(frozen=True)
class OverView:
    """Everything that the page shows of several runs together."""

    svg: str | None
    predictions: Table | None
    paper: Table


@dataclass(frozen=True)
class RunView:
    """Everything that the page shows of one run."""

    anchor: str
    label: str
    method_count: int
    answer: list[str]
    headline_alt: str
    figures: dict[str, FigureView]
    recovery_interval: str
    can_show: bool | None
    gate: Table
    forgetting: Table
    forgetting_sentences: list[str]
    further: Table | None
    stand_in: Table | None
    conjectures: tuple[Conjecture, ...]
    settings: Table
    origin: Table
    config: str | None
    all_rows: Table


def render_page(runs: Sequence[Run], figures: Sequence[Mapping[str, bytes]]) -> str:
    """Return the report of runs as HTML.

    Args:
        runs: runs in the order of the page.
        figures: figures of each run, as SVG by name.
    """
    environment = page_environment("unforgotten.reports")
    views = [run_view(run, svgs, f"run{i}") for i, (run, svgs) in enumerate(zip(runs, figures, strict=True), 1)]
    return environment.get_template("report.html.j2").render(
        runs=views,
        summary=tables.summary_table(runs) if len(runs) > 1 else None,
        over=_over(runs) if len(runs) > 1 else None,
        depths=tables.depth_table(runs),
        metric_names=METRICS,
        stochastic=any("bf16-sr" in run.storages for run in runs),
    )


def _over(runs: Sequence[Run]) -> OverView:
    svg = render_svg(lambda _: predictions_figure(runs), runs[0])
    predicted = over_runs.predictions_table(runs)
    return OverView(_as_source(svg), predicted, over_runs.paper_table(runs))


def draw_figures(run: Run) -> dict[str, bytes]:
    """Return the SVG of every figure that the run has rows for."""
    drawn = {name: render_svg(draw, run) for name, draw in FIGURES.items()}
    return {name: svg for name, svg in drawn.items() if svg is not None}


def run_view(run: Run, svgs: Mapping[str, bytes], anchor: str) -> RunView:
    """Collect what the page shows of a run."""
    config = json.dumps(run.settings, indent=1, ensure_ascii=False) if run.settings else None
    return RunView(
        anchor=anchor,
        label=run.label,
        method_count=len(run.methods),
        answer=answer(run),
        headline_alt=" ".join(headline_sentences(run)).replace("\n", "; "),
        figures={name: _figure_view(name, run, svgs.get(name)) for name in FIGURES},
        recovery_interval=tables.recovery_interval(run),
        can_show=passed(gate_checks(run)),
        gate=tables.gate_table(run),
        forgetting=tables.forgetting_table(run),
        forgetting_sentences=forgetting_sentences(run),
        further=tables.further_table(run),
        stand_in=tables.stand_in_table(run),
        conjectures=conjectures(run),
        settings=tables.settings_table(run),
        origin=tables.origin_table(run),
        config=config,
        all_rows=tables.all_rows_table(run),
    )


def _figure_view(name: str, run: Run, svg: bytes | None) -> FigureView:
    if svg is None:
        return FigureView(None, None)
    table = FIGURE_TABLES.get(name)
    return FigureView(_as_source(svg), table(run) if table else None)


def _as_source(svg: bytes | None) -> str | None:
    """Return a figure as the source of an image that is part of the page."""
    return None if svg is None else "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
