"""M2 and M4, knowledge of the forget and the retain split: ROUGE-L F1 of the greedy answer, x 100."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from unforgotten.experiments.config import EvaluationConfig
from unforgotten.experiments.metrics.items import of_items
from unforgotten.experiments.metrics.probes import Probes
from unforgotten.experiments.metrics.rouge import rouge_items
from unforgotten.experiments.models.generation import generate
from unforgotten.records.store import Measurement

ANSWER_ENDS = ("\n\n", "\nQuestion", "Question:")


def cut_answer(text: str) -> str:
    """Cut an answer where the model starts a new question, as in MUSE; a single newline does not end it."""
    for end in ANSWER_ENDS:
        text = text.split(end)[0]
    return text.strip()


def knowledge(
    name: str, model: PreTrainedModel, probes: Probes, tokenizer: Any, config: EvaluationConfig
) -> Measurement:
    """M2 on the forget questions, M4 on the retain questions."""
    prompts, answers = (
        (probes.forget_prompts, probes.forget_answers)
        if name == "M2"
        else (probes.retain_prompts, probes.retain_answers)
    )
    outputs = generate(model, prompts, tokenizer, config.answer_tokens, config.batch)
    texts = [cut_answer(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in outputs]
    return of_items(name, rouge_items(answers, texts))
