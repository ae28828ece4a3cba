"""What the metrics ask of a model: documents, prompts and true answers, tokenized once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unforgotten.experiments.config import EvaluationConfig, Measuring
from unforgotten.experiments.data.corpus import Corpus, Question
from unforgotten.experiments.metrics.rouge import RougeTokenizer, tokenizer_for
from unforgotten.experiments.models.batches import encode_documents
from unforgotten.experiments.models.special_tokens import start_tokens, started


@dataclass(frozen=True)
class Probes:
    """The corpus, tokenized once for all models of a run.

    `forget` and `retain` are what unlearning sees; `passages` and `holdout` are measured by M1, M3 and the losses. `start`
    is what the tokenizer puts before each of them.
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
    start: list[int]

    @property
    def rouge_tokenizer(self) -> RougeTokenizer:
        """Tokenizer of ROUGE that fits the true answers of all three sets."""
        return tokenizer_for([*self.verbatim_truths, *self.forget_answers, *self.retain_answers])


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
        start=start_tokens(tokenizer),
    )


def _prompts(
    questions: Sequence[Question], shots: Sequence[Question], tokenizer: Any, config: EvaluationConfig
) -> list[list[int]]:
    context = "".join(shot.sheet_line() for shot in shots[: config.shots])
    return [started(f"{context}Question: {q.question}\n{config.answer_cue}", tokenizer) for q in questions]
