"""Every figure of the report: a pure function of one run's rows, rendered to identical bytes."""

from __future__ import annotations

from collections.abc import Mapping

from unforgotten.reports.run.effect_figures import decomposition_figure, hybrid_figure
from unforgotten.reports.run.headline import headline_figure
from unforgotten.reports.run.metric_figures import metrics_figure, recovery_figure
from unforgotten.reports.run.update_figures import flips_figure, gain_figure
from unforgotten.reports.style import Draw

FIGURES: Mapping[str, Draw] = {
    "headline": headline_figure,
    "metrics": metrics_figure,
    "recovery": recovery_figure,
    "gain": gain_figure,
    "decomposition": decomposition_figure,
    "hybrids": hybrid_figure,
    "flips": flips_figure,
}
