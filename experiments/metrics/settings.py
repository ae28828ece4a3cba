"""What a profile says of metrics on demand that have settings of their own."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from unforgotten.experiments.section import Section


class HarnessConfig(Section):
    """How lm-evaluation-harness is asked, for the metrics Gen, Tru and Fac.

    Attributes:
        path: directory of task files of one's own, which come before the harness's tasks of the same names.
        limit: largest number of items of each task; None for all.
    """

    path: Path | None = None
    limit: int | None = Field(default=None, ge=2)


class LeakConfig(Section):
    """How leak@k is measured.

    Attributes:
        samples: number of answers that are drawn for each question, at least the largest k.
        temperature: temperature at which they are drawn.
        threshold: least ROUGE-L recall of the true answer in one that leaks.
    """

    samples: int = Field(default=16, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    threshold: float = Field(default=0.5, gt=0, le=1)
