"""Published numbers that speak of the same thing as ours: arXiv 2410.16454, Table 1, and an independent reproduction.

M1, the verbatim memory, in per cent: of the target and the unlearned model, and of both in 4 bits. The headline adds M2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

TABLE_1 = "arXiv 2410.16454, Table 1"
REPRODUCTION = "theQuantaBoy/Failure-LLM-Unlearning-Reproduction, seed 42"


class PaperCell(NamedTuple):
    """M1 of one method on one data set, before and after quantization."""

    source: str
    data: str
    method: str
    quantizer: str
    target: float
    unlearned: float
    quantized_target: float
    quantized: float

    @property
    def back(self) -> float:
        """Share of what was removed that is there again."""
        return (self.quantized - self.unlearned) / (self.target - self.unlearned)

    @property
    def of_quantized_target(self) -> float:
        """M1 of the quantized unlearned model as a share of that of the quantized target."""
        return self.quantized / self.quantized_target


class Scores(NamedTuple):
    """M1 and M2 of a model of Table 1, in full precision and in 4 bits."""

    full: tuple[float, float]
    quantized: tuple[float, float]


PAPER: Mapping[str, Mapping[str, Scores]] = {
    "NEWS": {
        "target": Scores((58.4, 63.9), (34.2, 54.4)),
        "retrained": Scores((20.8, 33.1), (18.5, 36.0)),
        "GA": Scores((0.0, 0.0), (0.0, 0.0)),
        "GA_GDR": Scores((0.0, 28.9), (25.0, 50.1)),
        "GA_KLR": Scores((14.1, 27.1), (33.8, 50.9)),
        "NPO": Scores((0.0, 0.0), (16.2, 25.4)),
        "NPO_GDR": Scores((0.3, 46.1), (33.2, 51.4)),
        "NPO_KLR": Scores((16.6, 36.6), (34.1, 53.7)),
    },
    "BOOKS": {
        "target": Scores((99.8, 59.4), (85.3, 36.8)),
        "retrained": Scores((14.3, 28.9), (13.6, 24.1)),
        "GA": Scores((0.0, 0.0), (0.0, 0.0)),
        "GA_GDR": Scores((0.0, 2.9), (17.9, 33.7)),
        "GA_KLR": Scores((13.0, 15.1), (75.6, 34.6)),
        "NPO": Scores((0.0, 0.0), (7.0, 5.3)),
        "NPO_GDR": Scores((0.4, 13.4), (66.0, 31.9)),
        "NPO_KLR": Scores((12.4, 13.7), (70.9, 34.2)),
    },
}
"""Table 1: data sets and their models."""
RETAINED = ("GA_GDR", "GA_KLR", "NPO_GDR", "NPO_KLR")
"""Methods with a retain term, of which the paper's abstract speaks."""


class Headline(NamedTuple):
    """M1 and M2 over both data sets, as a share of those of the target.

    Attributes:
        full: in full precision.
        quantized: in 4 bits, of the target in 4 bits.
        of_full: in 4 bits, of the target in full precision.
    """

    full: float
    quantized: float
    of_full: float


def headline(methods: Sequence[str] = RETAINED) -> Headline:
    """Return the sum of M1 and M2 of methods over both data sets as a share of the same sum of the target.

    For the methods with a retain term it gives the abstract's 21 % and 83 %.
    """
    full, quantized = (sum(sum(scores[m][at]) for scores in PAPER.values() for m in methods) for at in (0, 1))
    of, of_quantized = (len(methods) * sum(sum(scores["target"][at]) for scores in PAPER.values()) for at in (0, 1))
    return Headline(full / of, quantized / of_quantized, quantized / of)


def _table_1() -> Iterator[PaperCell]:
    for model in list(PAPER["NEWS"])[1:]:
        for data, scores in PAPER.items():
            knew, knows = scores["target"], scores[model]
            m1 = (one[0] for one in (knew.full, knows.full, knew.quantized, knows.quantized))
            yield PaperCell(TABLE_1, data, model, "bitsandbytes", *m1)


def _reproduced(quantizer: str, quantized_target: float, quantized: float) -> PaperCell:
    return PaperCell(REPRODUCTION, "BOOKS", "NPO_KLR", quantizer, 99.6, 11.3, quantized_target, quantized)


CELLS = (
    *_table_1(),
    _reproduced("bitsandbytes FP4", 88.8, 73.3),
    _reproduced("RTN, int4 in groups of 128", 78.4, 72.0),
    _reproduced("AWQ, int4 in groups of 128", 93.4, 47.6),
    _reproduced("GPTQ, int4 in groups of 128", 83.7, 17.4),
)
