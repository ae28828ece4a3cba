"""One picture for each statement: functions of no arguments, drawn from the theory's own functions, rendered to identical bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from unforgotten.records.rows import Run
from unforgotten.reports.style import render_svg
from unforgotten.reports.theory_document import pictures_geometry as geometry
from unforgotten.reports.theory_document import pictures_laws as laws
from unforgotten.reports.theory_document import pictures_limits as limits
from unforgotten.reports.theory_document import pictures_models as models

PICTURES: Mapping[str, Callable[[], Figure]] = {
    "T1": geometry.t1_cells,
    "T2": geometry.t2_unflipped,
    "T3": geometry.t3_sandwich,
    "T4": geometry.t4_dead_zone,
    "T5": geometry.t5_ratio,
    "T6": laws.t6_flips,
    "T7": laws.t7_staircases,
    "T8": laws.t8_cosine,
    "T9": laws.t9_concentration,
    "T10": laws.t10_bits_and_blocks,
    "T11": laws.t11_regimes,
    "T12": laws.t12_wash,
    "T13": models.t13_averaging,
    "T14": models.t14_waterfall,
    "T15": models.t15_divergence,
    "T16": models.t16_recovery,
    "T17": models.t17_cells,
    "T18": limits.t18_certificate,
    "T19": limits.t19_dither,
    "T20": limits.t20_functional_gain,
    "T21": limits.t21_second_moment,
    "T22": limits.t22_minimax,
}


def picture_svg(claim_id: str) -> bytes:
    """Draw the picture of a statement as SVG."""
    svg = render_svg(lambda _: PICTURES[claim_id](), Run((), ""))
    assert svg is not None  # only a run without rows has no figure
    return svg
