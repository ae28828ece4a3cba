"""M2 and M4, knowledge of the forget and the retain split: ROUGE-L F1 of the greedy answer, x 100."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import by_items
from unforgotten.experiments.metrics.rouge import RougeTokenizer, rouge_items
from unforgotten.records.metrics import METRICS as MEANINGS

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes

ANSWER_ENDS = ("\n\n", "\nQuestion", "Question:")


def cut_answer(text: str) -> str:
    """Cut an answer where the model starts a new question, as in MUSE; a single newline does not end it."""
    for end in ANSWER_ENDS:
        text = text.split(end)[0]
    return text.strip()


def _knowledge(
    model: Examined,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[str],
    tokenizer: RougeTokenizer,
    settings: Measuring,
) -> list[float]:
    said = model.continuations(prompts, settings.evaluation.answer_tokens)
    return rouge_items(answers, [cut_answer(text) for text in said], tokenizer)


def _of_forget(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return _knowledge(model, probes.forget_prompts, probes.forget_answers, probes.rouge_tokenizer, settings)


def _of_retain(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    return _knowledge(model, probes.retain_prompts, probes.retain_answers, probes.rouge_tokenizer, settings)


METRICS = (by_items("M2", MEANINGS["M2"], _of_forget), by_items("M4", MEANINGS["M4"], _of_retain))
