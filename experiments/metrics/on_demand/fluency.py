"""fluency: entropy of the n-grams of greedy continuations of retain documents, bits; text that repeats itself has little.

(2/3 H_2 + 4/3 H_3) / 2, where H_n is the entropy of the frequencies of a text's n-grams of words. Meng et al. 2022, ROME
(arXiv 2202.05262), after Zhang et al. 2018 (arXiv 1809.05972); its code averages the weighted entropies, as here. Words are runs
of letters and digits, and single other characters; ROME splits by NLTK's tokenizer.

H_n is at most log2 of the number of n-grams, so that only continuations of one length compare: they are GENERATED tokens long,
or shorter where the model's context or its end token ends them. A text of fewer than two words has 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import log2
from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import by_items

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes

GENERATED = 100
"""Tokens that are generated."""

OPENING = 16
"""Tokens of a document, start tokens among them, that are continued."""

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weight of the entropy of each n."""

WORD = re.compile(r"\w+|[^\w\s]")


def entropy(words: Sequence[str], n: int) -> float:
    """Return the entropy of the frequencies of the n-grams of some words, bits; 0 where there are none."""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return sum(count / total * log2(total / count) for count in counts.values())


def repetition_entropy(text: str) -> float:
    """Return (2/3 H_2 + 4/3 H_3) / 2 of a text, bits."""
    words = WORD.findall(text)
    return sum(weight * entropy(words, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


def _items(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    context = int(getattr(model.model.config, "max_position_embeddings", 0) or GENERATED + OPENING)
    openings = [document[:OPENING] for document in probes.retained]
    said = model.continuations(openings, max(1, min(GENERATED, context - OPENING)))
    return [repetition_entropy(text) for text in said]


METRICS = (
    by_items(
        "fluency",
        "weighted entropy of 2- and 3-grams of greedy continuations of retain documents, bits; on demand",
        _items,
        on_demand=True,
    ),
)
