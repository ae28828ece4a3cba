"""What the metrics ask of a model: documents, prompts and true answers, tokenized once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unforgotten.experiments.config import EvaluationConfig, Measuring
from unforgotten.experiments.data.corpus import Corpus, Question
from unforgotten.experiments.metrics.rouge import RougeTokenizer, tokenizer_for
from unforgotten.experiments.models.batches import encode_chunks, encode_documents, encode_measured
from unforgotten.experiments.models.special_tokens import start_tokens, started


@dataclass(frozen=True)
class Probes:
    """The corpus, tokenized once for all models of a run.

    `forget` and `retain` are what unlearning sees, with end tokens where documents end. `passages`, `holdout` and
    `retained` are measured by M1, M3 and the losses, without. `verbatim_tokens` are the tokens of `verbatim_truths`. `start`
    is what the tokenizer puts before each document and prompt.
    """

    forget: list[list[int]]
    passages: list[list[int]]
    retain: list[list[int]]
    holdout: list[list[int]]
    retained: list[list[int]]
    verbatim_prompts: list[list[int]]
    verbatim_truths: list[str]
    verbatim_tokens: list[list[int]]
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
    passages = encode_measured(corpus.passages, tokenizer, longest)
    cuts = [int(len(p) * config.corpus.prompt_share) for p in passages]
    ends = [cut + config.corpus.probe_tokens for cut in cuts]
    truths = [p[cut:end] for p, cut, end in zip(passages, cuts, ends, strict=True)]
    asked = config.evaluation.questions
    forget, retain = corpus.forget_questions[:asked], corpus.retain_questions[:asked]
    return Probes(
        forget=encode_training(corpus, corpus.forget, tokenizer, longest),
        passages=passages,
        retain=encode_training(corpus, corpus.retain, tokenizer, longest),
        holdout=encode_measured(corpus.holdout, tokenizer, longest),
        retained=encode_measured(corpus.retained, tokenizer, longest),
        verbatim_prompts=[p[:cut] for p, cut in zip(passages, cuts, strict=True)],
        verbatim_truths=[tokenizer.decode(t, skip_special_tokens=True) for t in truths],
        verbatim_tokens=truths,
        forget_prompts=_prompts(forget, corpus.forget_shots, tokenizer, config.evaluation),
        forget_answers=[q.answer for q in forget],
        retain_prompts=_prompts(retain, corpus.retain_shots, tokenizer, config.evaluation),
        retain_answers=[q.answer for q in retain],
        start=start_tokens(tokenizer),
    )


def encode_training(corpus: Corpus, texts: Sequence[str], tokenizer: Any, longest: int) -> list[list[int]]:
    """Return the texts of a corpus as a model is trained on them: documents that end, or running text in chunks."""
    encode = encode_chunks if corpus.running else encode_documents
    return encode(texts, tokenizer, longest)


def _prompts(
    questions: Sequence[Question], shots: Sequence[Question], tokenizer: Any, config: EvaluationConfig
) -> list[list[int]]:
    context = "".join(shot.sheet_line() for shot in shots[: config.shots])
    return [started(f"{context}Question: {q.question}\n{config.answer_cue}", tokenizer) for q in questions]
