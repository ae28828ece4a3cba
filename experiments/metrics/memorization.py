"""M1, verbatim memory: ROUGE-L F1 of the greedy continuation of a forget passage, x 100.

Each continuation is cut to the length of its truth in tokens, so that a perfect copy that runs on scores 100. MUSE
compares all that was generated. The cut holds from the revision after 0.1.0+src.e8a72f452c72 on: earlier rows compare up
to `probe_tokens`. MUSE's own prompts and truths are asked where models are trained on all of its text.

M1_sampled draws the continuation as the released code of arXiv 2410.16454 does, at temperature 0.9 from the 50 likeliest tokens,
which transformers takes by default; here each prompt has a seed of its own, there is none there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from unforgotten.experiments.metrics.metric import by_items
from unforgotten.experiments.metrics.rouge import rouge_items
from unforgotten.records.metrics import METRICS as MEANINGS

if TYPE_CHECKING:
    from unforgotten.experiments.config import Measuring
    from unforgotten.experiments.metrics.examined import Examined
    from unforgotten.experiments.metrics.probes import Probes


RELEASED_TEMPERATURE = 0.9
RELEASED_MOST_LIKELY = 50
Continued = Callable[[Sequence[Sequence[int]], int], list[list[int]]]
"""Prompts and a number of tokens to continuations."""


def _verbatim(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    del settings
    return _compared(model, probes, model.continuation_tokens)


def _sampled(model: Examined, probes: Probes, settings: Measuring) -> list[float]:
    from unforgotten.experiments.models.sampling import Drawing

    drawing = Drawing(RELEASED_TEMPERATURE, settings.seed, most_likely=RELEASED_MOST_LIKELY)
    return _compared(model, probes, partial(model.sampled_tokens, drawing=drawing))


def _compared(model: Examined, probes: Probes, continued: Continued) -> list[float]:
    lengths = [len(truth) for truth in probes.verbatim_tokens]
    said = continued(probes.verbatim_prompts, max([1, *lengths]))
    cut = [model.decode(tokens[:length]) for tokens, length in zip(said, lengths, strict=True)]
    return rouge_items(probes.verbatim_truths, cut, probes.rouge_tokenizer)


METRICS = (
    by_items("M1", MEANINGS["M1"], _verbatim),
    by_items(
        "M1_sampled",
        "M1 of continuations that are drawn as the released code does, T = 0.9, top 50: ROUGE-L F1, 0-100; on demand",
        _sampled,
        on_demand=True,
    ),
)
