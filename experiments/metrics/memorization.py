"""M1, verbatim memory: ROUGE-L F1 of the greedy continuation of a forget passage, x 100.

Each continuation is cut to the length of its truth in tokens, so that a perfect copy that runs on scores 100. MUSE
compares all that was generated. The cut holds from the revision after 0.1.0+src.e8a72f452c72 on: earlier rows compare up
to `probe_tokens`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import by_items
from unforgotten.experiments.metrics.rouge import rouge_items
from unforgotten.records.metrics import METRICS as MEANINGS

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes


def _verbatim(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    lengths = [len(truth) for truth in probes.verbatim_tokens]
    said = model.continuation_tokens(probes.verbatim_prompts, max([1, *lengths]))
    cut = [model.decode(tokens[:length]) for tokens, length in zip(said, lengths, strict=True)]
    return rouge_items(probes.verbatim_truths, cut, probes.rouge_tokenizer)


METRICS = (by_items("M1", MEANINGS["M1"], _verbatim),)
