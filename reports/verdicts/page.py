"""`reports/published/README.md`: the page of verdicts, made of the published rows.

`python -m unforgotten.reports.verdicts.page reports/published` writes it. The same rows give the same text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from unforgotten.records.files import write_text
from unforgotten.reports.labels import precision_label
from unforgotten.reports.markdown import table
from unforgotten.reports.verdicts.at_a_glance import at_a_glance
from unforgotten.reports.verdicts.claim import Claim
from unforgotten.reports.verdicts.claims import claims
from unforgotten.reports.verdicts.cures import Cure, cure_rows, cures
from unforgotten.reports.verdicts.evidence import Evidence
from unforgotten.reports.verdicts.ingredients import (
    SHOWN,
    STUDY,
    Ingredients,
    ingredient_rows,
    ingredient_sentences,
    ingredients,
)
from unforgotten.reports.verdicts.paper import CELLS, PaperCell, headline
from unforgotten.reports.verdicts.phased import assumed_ratios

NAME = "README.md"
TEMPLATE = "published.md.j2"


def page(published: Path) -> str:
    """Return the page of verdicts in GitHub's Markdown."""
    environment = Environment(
        loader=PackageLoader("unforgotten.reports"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    evidence = Evidence(published)
    found, arms = claims(evidence), ingredients(evidence)
    return environment.get_template(TEMPLATE).render(
        claims=found,
        verdicts=verdict_table(found),
        at_a_glance=at_a_glance(evidence),
        paper=paper_table(CELLS),
        headline=headline(),
        retrained=headline(["retrained"]),
        cures=cure_table(cures(evidence)),
        ratios={place: f"{ratio:.2f}" for place, ratio in assumed_ratios(evidence).items()},
        ingredients=ingredient_table(arms),
        by_ingredient=ingredient_sentences(arms, evidence.predicted(STUDY)),
    )


def verdict_table(found: Sequence[Claim]) -> str:
    """Return a line for each claim."""
    lines = [(f"[{c.name}](#{c.name.lower().replace(' ', '-')})", c.statement, f"**{c.word}**", c.scope) for c in found]
    return table(("", "claimed or asked", "verdict", "under which conditions"), lines)


def paper_table(cells: Sequence[PaperCell]) -> str:
    """Return a line for each published number."""
    columns = (
        "data",
        "method",
        "4 bits by",
        "M1 unlearned",
        "in 4 bits",
        "came back",
        "of the target in 4 bits",
        "source",
    )
    lines = [
        (
            *(cell.data, cell.method, cell.quantizer, f"{cell.unlearned:.1f}", f"{cell.quantized:.1f}"),
            *(f"{cell.back:.0%}", f"{cell.of_quantized_target:.0%}", cell.source),
        )
        for cell in cells
    ]
    return table(columns, lines)


def cure_table(found: Sequence[Cure]) -> str:
    """Return a line for each cure; empty without any."""
    columns = (
        *(
            "unlearned to",
            "method and storage",
            "lr",
            "forget loss",
            "gain",
            "came back of the forget loss",
            "M4, points",
        ),
        *("M4 of the quantized models, points", "seeds"),
    )
    return table(columns, cure_rows(found)) if found else ""


def ingredient_table(found: Sequence[Ingredients]) -> str:
    """Return a line for each arm of the study of the released code; empty without any."""
    columns = (
        *("method", "losses of", "mask", "lr", "parameters", "forget loss"),
        *(f"gain, {precision_label(fmt)}" for fmt in SHOWN),
        *("came back at int4 and fp4", "M4, points", "seeds"),
    )
    return table(columns, ingredient_rows(found)) if found else ""


if __name__ == "__main__":
    write_text(Path(sys.argv[1]) / NAME, page(Path(sys.argv[1])))
