"""What the metrics of other harnesses say: of the forget or the retain split, and whether more of one is more knowledge.

    declared("wmdp_bio:acc=forget")
    known("forget_knowmem_ROUGE").name  # "M2"

A verdict rests on metrics of the kind "forget", answers that were unlearned. "forget-likelihood" and "forget-loss" can object to
"survives" and decide nothing, as in `verdict.rule`. "retain" and "retain-loss" tell whether a model is broken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

Kind = Literal["forget", "forget-likelihood", "forget-loss", "retain", "retain-loss"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PERCENT = 100.0


class JudgedMetric(NamedTuple):
    """A metric as a verdict reads it.

    Attributes:
        name: name in the verdict; metrics of MUSE have the names of an audit.
        kind: what it says.
        unit: factor from the harness's values to the verdict's.
        low, high: ends of the harness's range; None where it has none or is not known.
    """

    name: str
    kind: Kind
    unit: float = 1.0
    low: float | None = None
    high: float | None = None

    @property
    def falls(self) -> bool:
        """Whether less of it means more knowledge."""
        return self.kind in ("forget-loss", "retain-loss")


def _share(name: str, kind: Kind, unit: float = 1.0) -> JudgedMetric:
    return JudgedMetric(name, kind, unit, 0.0, 1.0)


def _percentage(name: str, kind: Kind) -> JudgedMetric:
    return JudgedMetric(name, kind, 1.0, 0.0, PERCENT)


KNOWN: Mapping[str, JudgedMetric] = {
    # OpenUnlearning, on MUSE and on TOFU
    "forget_verbmem_ROUGE": _share("M1", "forget", PERCENT),
    "forget_knowmem_ROUGE": _share("M2", "forget", PERCENT),
    "retain_knowmem_ROUGE": _share("M4", "retain", PERCENT),
    "forget_Q_A_ROUGE": _share("M2", "forget", PERCENT),
    "retain_Q_A_ROUGE": _share("M4", "retain", PERCENT),
    "forget_Q_A_Prob": _share("forget_probability", "forget-likelihood"),
    "extraction_strength": _share("extraction_strength", "forget-likelihood"),
    "exact_memorization": _share("exact_memorization", "forget-likelihood"),
    # MUSE's own logs
    "verbmem_f": _share("M1", "forget", PERCENT),
    "knowmem_f": _share("M2", "forget", PERCENT),
    "knowmem_r": _share("M4", "retain", PERCENT),
    # rows of a run, also as lm-eval's tasks by `unforgotten export`
    "M1": _percentage("M1", "forget"),
    "M2": _percentage("M2", "forget"),
    "M4": _percentage("M4", "retain"),
    "forget_loss": JudgedMetric("forget_loss", "forget-loss", low=0.0),
    "retain_loss": JudgedMetric("retain_loss", "retain-loss", low=0.0),
}
PATTERNS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"wmdp(_\w+)?:acc"), "forget"),
    (re.compile(r"mmlu(_\w+)?:acc"), "retain"),
)
"""Tasks of lm-eval that were made to be forgotten, and those that are asked of what should stay: `TASK:METRIC`."""
OWN_TASK = re.compile(r"unforgotten_(\w+):value")


def known(name: str) -> JudgedMetric | None:
    """Return the metric of a harness's name; None where its meaning is not known."""
    own = OWN_TASK.fullmatch(name)
    if own is not None:
        return KNOWN.get(own[1])
    for pattern, kind in PATTERNS:
        if pattern.fullmatch(name):
            return _share(name, kind)
    return KNOWN.get(name)


def declared(text: str) -> tuple[str, JudgedMetric]:
    """Read what a user says of a metric, `NAME=KIND`; return its name and the metric.

    Raises:
        ValueError: it is not of that form, or the kind is unknown.
    """
    name, _, kind = text.rpartition("=")
    if not name or kind not in KINDS:
        raise ValueError(f"--metric must be NAME=KIND with a kind of {', '.join(KINDS)}, got {text!r}")
    found = known(name)
    return name, JudgedMetric(name, kind) if found is None else found._replace(kind=kind)
