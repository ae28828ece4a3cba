"""leak_at_k: the share of forget questions that at least one of k sampled answers gives away.

Reisizadeh et al. 2025, Leak@k (arXiv 2511.04934): of n >= k answers to a question, c of which leak, 1 - C(n - c, k) / C(n, k) is
without bias, as pass@k of Chen et al. 2021 (arXiv 2107.03374); the value is the mean over questions. An answer leaks if the
ROUGE-L recall of the true one is at least `leak.threshold`; the paper's own table asks a model for entailment instead, and
draws n = 200. Prompts and cuts are those of M2. Each answer is drawn by a seed of its own, see `models/sampling.py`.
"""

from __future__ import annotations

from functools import partial
from math import comb
from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import by_items
from unforgotten.experiments.metrics.on_demand.leak_names import ANSWERS, leak_name

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes


def leak_estimate(n: int, leaks: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k): the share of sets of k of the n answers in which one of the c leaks is.

    Args:
        n: number of answers, >= k.
        leaks: number c of those that leak, 0 to n.
        k: size of the sets, >= 1.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to the number of samples ({n}), got k={k}")
    return 1.0 - comb(n - leaks, k) / comb(n, k)


def _items(model: Examined, probes: Probes, settings: Measuring, k: int) -> list[float]:
    from unforgotten.experiments.metrics.knowledge import cut_answer
    from unforgotten.experiments.metrics.rouge import rouge_recalls
    from unforgotten.experiments.models.sampling import Drawing

    leak, answers, tokenizer = settings.evaluation.leak, probes.forget_answers, probes.rouge_tokenizer
    new_tokens = settings.evaluation.answer_tokens
    leaks = [0] * len(answers)
    for number in range(leak.samples):
        drawing = Drawing(leak.temperature, settings.seed, number)
        said = model.sampled(probes.forget_prompts, new_tokens, drawing)
        recalls = rouge_recalls(answers, [cut_answer(text) for text in said], tokenizer)
        leaks = [c + (recall >= leak.threshold) for c, recall in zip(leaks, recalls, strict=True)]
    return [leak_estimate(leak.samples, c, k) for c in leaks]


MEANING = "share of forget questions that one of {k} sampled answers gives away, 0-1; on demand"
METRICS = tuple(by_items(leak_name(k), MEANING.format(k=k), partial(_items, k=k), on_demand=True) for k in ANSWERS)
