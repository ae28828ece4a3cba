"""One numeric example for each statement: functions that call the theory and return Markdown lines. No number is written by hand but the inputs."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping

from unforgotten.reports.theory_document import examples_geometry as geometry
from unforgotten.reports.theory_document import examples_laws as laws
from unforgotten.reports.theory_document import examples_limits as limits
from unforgotten.reports.theory_document import examples_models as models

Example = Callable[[], list[str]]

EXAMPLES: Mapping[str, Example] = {
    "survival": models.survival_by_format,
    "paper": geometry.paper_step,
    "paper weights": geometry.paper_weights,
    "T1": geometry.t1_cells,
    "T2": geometry.t2_drift,
    "T3": geometry.t3_sandwich,
    "T4": geometry.t4_dead_zone,
    "T5": geometry.t5_adamw,
    "T6": laws.t6_flips,
    "T7": laws.t7_gating,
    "T8": laws.t8_cosine,
    "T9": laws.t9_concentration,
    "T10": laws.t10_bits_and_blocks,
    "T11": laws.t11_biased_regimes,
    "T12": laws.t12_wash,
    "T13": models.t13_response,
    "T14": models.t14_decomposition,
    "T15": models.t15_bounds,
    "T16": models.t16_recovery,
    "T17": models.t17_lattice,
    "T18": limits.t18_certificate,
    "T19": limits.t19_dither,
    "T20": limits.t20_functional_gain,
    "T21": limits.t21_second_moment,
    "T22": limits.t22_minimax,
    "verdicts": models.verdicts,
}


def example(name: str) -> str:
    """Compute an example and return its lines as Markdown."""
    return "\n".join(EXAMPLES[name]())


def source(name: str) -> str:
    """Return the code of an example as Markdown, folded away."""
    code = textwrap.dedent(inspect.getsource(EXAMPLES[name])).rstrip()
    return f"<details><summary>How this was computed</summary>\n\n```python\n{code}\n```\n\n</details>"
