"""M1, verbatim memory: ROUGE-L F1 of the greedy continuation of a forget passage, x 100."""

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
    said = model.continuations(probes.verbatim_prompts, settings.corpus.probe_tokens)
    return rouge_items(probes.verbatim_truths, said, probes.rouge_tokenizer)


METRICS = (by_items("M1", MEANINGS["M1"], _verbatim),)
