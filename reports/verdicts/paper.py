"""Published numbers that speak of the same thing as ours: arXiv 2410.16454, Table 1, and an independent reproduction.

M1, the verbatim memory, in per cent: of the target and the unlearned model, and of both in 4 bits.
"""

from __future__ import annotations

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


def _table_1(method: str, news: tuple[float, float], books: tuple[float, float]) -> list[PaperCell]:
    return [
        PaperCell(TABLE_1, "NEWS", method, "bitsandbytes", 58.4, news[0], 34.2, news[1]),
        PaperCell(TABLE_1, "BOOKS", method, "bitsandbytes", 99.8, books[0], 85.3, books[1]),
    ]


def _reproduced(quantizer: str, quantized_target: float, quantized: float) -> PaperCell:
    return PaperCell(REPRODUCTION, "BOOKS", "NPO_KLR", quantizer, 99.6, 11.3, quantized_target, quantized)


CELLS = (
    *_table_1("GA", (0.0, 0.0), (0.0, 0.0)),
    *_table_1("GA_GDR", (0.0, 25.0), (0.0, 17.9)),
    *_table_1("GA_KLR", (14.1, 33.8), (13.0, 75.6)),
    *_table_1("NPO", (0.0, 16.2), (0.0, 7.0)),
    *_table_1("NPO_GDR", (0.3, 33.2), (0.4, 66.0)),
    *_table_1("NPO_KLR", (16.6, 34.1), (12.4, 70.9)),
    _reproduced("bitsandbytes FP4", 88.8, 73.3),
    _reproduced("RTN, int4 in groups of 128", 78.4, 72.0),
    _reproduced("AWQ, int4 in groups of 128", 93.4, 47.6),
    _reproduced("GPTQ, int4 in groups of 128", 83.7, 17.4),
)
