"""M1-M4 of MUSE on one model, item by item. Paper/spec section 3; every departure is a setting of the run.

M1 verbatim memory: ROUGE-L F1 of the greedy continuation of a forget passage, x 100.
M2, M4 knowledge of the forget and retain split: ROUGE-L F1 of the greedy answer, x 100.
M3 privacy leakage: 100 (AUC - AUC_retrained) / AUC_retrained, AUC = P[MinK(holdout) > MinK(forget)].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.experiments.config import EvaluationConfig, Measuring
from unforgotten.experiments.data.corpus import Corpus, Question
from unforgotten.experiments.models.batches import encode_documents
from unforgotten.experiments.models.generation import generate
from unforgotten.records.store import Measurement

ANSWER_ENDS = ("\n\n", "\nQuestion", "Question:")
BOOTSTRAPS = 1_000


@dataclass(frozen=True)
class Probes:
    """The corpus, tokenized once for all models of a run.

    `forget` and `retain` are what unlearning sees; `passages` and `holdout` are measured by M1, M3 and the losses.
    """

    forget: list[list[int]]
    passages: list[list[int]]
    retain: list[list[int]]
    holdout: list[list[int]]
    verbatim_prompts: list[list[int]]
    verbatim_truths: list[str]
    forget_prompts: list[list[int]]
    forget_answers: list[str]
    retain_prompts: list[list[int]]
    retain_answers: list[str]


def make_probes(corpus: Corpus, tokenizer: Any, config: Measuring) -> Probes:
    """Tokenize documents, passages and questions as `config` says."""
    longest = config.corpus.passage_tokens
    passages = encode_documents(corpus.passages, tokenizer, longest)
    cuts = [int(len(p) * config.corpus.prompt_share) for p in passages]
    ends = [cut + config.corpus.probe_tokens for cut in cuts]
    truths = [p[cut:end] for p, cut, end in zip(passages, cuts, ends, strict=True)]
    asked = config.evaluation.questions
    forget, retain = corpus.forget_questions[:asked], corpus.retain_questions[:asked]
    return Probes(
        forget=encode_documents(corpus.forget, tokenizer, longest),
        passages=passages,
        retain=encode_documents(corpus.retain, tokenizer, longest),
        holdout=encode_documents(corpus.holdout, tokenizer, longest),
        verbatim_prompts=[p[:cut] for p, cut in zip(passages, cuts, strict=True)],
        verbatim_truths=[tokenizer.decode(t, skip_special_tokens=True) for t in truths],
        forget_prompts=_prompts(forget, corpus.forget_shots, tokenizer, config.evaluation),
        forget_answers=[q.answer for q in forget],
        retain_prompts=_prompts(retain, corpus.retain_shots, tokenizer, config.evaluation),
        retain_answers=[q.answer for q in retain],
    )


def _prompts(
    questions: Sequence[Question], shots: Sequence[Question], tokenizer: Any, config: EvaluationConfig
) -> list[list[int]]:
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    context = "".join(shot.sheet_line() for shot in shots[: config.shots])
    return [
        start + tokenizer.encode(f"{context}Question: {q.question}\n{config.answer_cue}", add_special_tokens=False)
        for q in questions
    ]


def rouge_items(truths: Sequence[str], outputs: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each output against its truth, x 100, no stemmer."""
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return [
        100.0 * scorer.score(truth, output)["rougeL"].fmeasure for truth, output in zip(truths, outputs, strict=True)
    ]


def cut_answer(text: str) -> str:
    """Cut an answer where the model starts a new question, as in MUSE; a single newline does not end it."""
    for end in ANSWER_ENDS:
        text = text.split(end)[0]
    return text.strip()


def verbatim_memory(model: PreTrainedModel, probes: Probes, tokenizer: Any, config: Measuring) -> Measurement:
    """M1."""
    outputs = generate(model, probes.verbatim_prompts, tokenizer, config.corpus.probe_tokens, config.evaluation.batch)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in outputs]
    return of_items("M1", rouge_items(probes.verbatim_truths, texts))


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


def min_k(scores: Sequence[Tensor], share: float) -> list[float]:
    """Return the mean of the `share` least likely token log-probabilities of each text; `scores` as of `token_scores`."""
    ordered = (text.sort().values for text in scores)
    return [float(text[: max(1, int(share * len(text)))].double().mean()) for text in ordered]


def membership_auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """P[score(holdout) > score(forget)], ties half."""
    truth = [0] * len(forget) + [1] * len(holdout)
    return float(roc_auc_score(truth, [*forget, *holdout]))


def privacy_leakage(
    scores: Sequence[float], retrained: Sequence[float], forget_count: int, *, seed: int
) -> list[Measurement]:
    """AUC, and M3 against the retrained model's scores on the same texts.

    Args:
        scores: Min-K % of the forget texts, then of the holdout texts.
        retrained: Min-K % of these texts under the retrained model, in the order of `scores`.
        forget_count: number of forget texts in `scores`.
        seed: seed of the bootstrap, which draws the same texts for both models.
    """
    n, m = forget_count, len(scores) - forget_count
    wins, base_wins = (_wins(np.asarray(x), n) for x in (scores, retrained))
    rng = np.random.default_rng(seed)
    aucs, leaks = [], []
    for _ in range(BOOTSTRAPS):
        drawn = np.ix_(rng.integers(n, size=n), rng.integers(m, size=m))
        auc, base = wins[drawn].mean(), base_wins[drawn].mean()
        aucs.append(auc)
        if base:  # M3 has no value against an AUC of 0
            leaks.append(100.0 * (auc - base) / base)
    auc = membership_auc(scores[:n], scores[n:])
    base = membership_auc(retrained[:n], retrained[n:])
    leak = 100.0 * (auc - base) / base if base else float("nan")
    spread = float(np.std(leaks, ddof=1)) if len(leaks) > 1 else None
    return [
        Measurement("auc", auc, float(np.std(aucs, ddof=1)), len(scores), tuple(scores)),
        Measurement("M3", leak, spread, len(scores)),
    ]


def _wins(scores: NDArray[np.float64], forget_count: int) -> NDArray[np.float64]:
    """Who wins each pair (forget, holdout): 1 the holdout text, 0.5 a tie; its mean is the AUC."""
    forget, holdout = scores[:forget_count, None], scores[None, forget_count:]
    return np.where(holdout == forget, 0.5, holdout > forget)


def losses(passages: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Measurement]:
    """forget_loss of the passages and retain_loss of the retain documents, one item a document.

    Args:
        passages: `token_scores` of `Probes.passages`.
        retain: `token_scores` of `Probes.retain`.
    """
    return [
        of_items(name, [-float(text.double().mean()) for text in texts])
        for name, texts in (("forget_loss", passages), ("retain_loss", retain))
    ]


def of_items(metric: str, items: Sequence[float]) -> Measurement:
    """Return the measurement of a metric from its items: their mean, with its standard error."""
    values = np.asarray(items, np.float64)
    stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return Measurement(metric, float(values.mean()), stderr, len(values), tuple(values.tolist()))
