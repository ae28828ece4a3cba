"""M1, verbatim memory: ROUGE-L F1 of the greedy continuation of a forget passage, x 100."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from unforgotten.experiments.config import Measuring
from unforgotten.experiments.metrics.items import of_items
from unforgotten.experiments.metrics.probes import Probes
from unforgotten.experiments.metrics.rouge import rouge_items
from unforgotten.experiments.models.generation import generate
from unforgotten.records.store import Measurement


def verbatim_memory(model: PreTrainedModel, probes: Probes, tokenizer: Any, config: Measuring) -> Measurement:
    """M1."""
    outputs = generate(model, probes.verbatim_prompts, tokenizer, config.corpus.probe_tokens, config.evaluation.batch)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in outputs]
    return of_items("M1", rouge_items(probes.verbatim_truths, texts))
