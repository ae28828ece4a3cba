"""What the metrics ask of a model: documents, prompts and true answers, tokenized once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Any, NamedTuple

from unforgotten.experiments.config import Measuring
from unforgotten.experiments.data.chat import Wording, answered_document, worded, wording_of
from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.data.question import Question
from unforgotten.experiments.data.settings import CorpusConfig
from unforgotten.experiments.data.sheets import answer_spans, encode_answers
from unforgotten.experiments.metrics.metric import Need
from unforgotten.experiments.metrics.registry import metric_named
from unforgotten.experiments.metrics.rouge import RougeTokenizer, tokenizer_for
from unforgotten.experiments.models.batches import encode_chunks, encode_documents, encode_measured
from unforgotten.experiments.models.special_tokens import start_tokens, started


class Answered(NamedTuple):
    """Token ids of a prompt and an answer to it.

    Attributes:
        tokens: tokens of both.
        answer: number of the answer's tokens, which are the last.
    """

    tokens: list[int]
    answer: int

    def cut(self, room: int, start: int) -> Answered:
        """Return it with the first tokens after the `start` ones left out, so that no more than `room` are left."""
        if len(self.tokens) <= room:
            return self
        kept = [*self.tokens[:start], *self.tokens[start - room :]]
        return Answered(kept, min(self.answer, room - max(start, 1)))


class Options(NamedTuple):
    """Answers to one question: the right one, the same in other words if the data has them, and wrong ones."""

    right: Answered
    paraphrase: Answered
    wrong: tuple[Answered, ...]

    def cut(self, room: int, start: int) -> Options:
        """Return the options, each cut."""
        right, paraphrase = self.right.cut(room, start), self.paraphrase.cut(room, start)
        return Options(right, paraphrase, tuple(answer.cut(room, start) for answer in self.wrong))


@dataclass(frozen=True)
class Probes:
    """The corpus, tokenized once for all models of a run.

    `forget` and `retain` are what unlearning sees, with end tokens where documents end. `passages`, `holdout` and
    `retained` are measured by M1, M3 and the losses, without. `verbatim_tokens` are the tokens of `verbatim_truths`, and
    options are the answers to the prompts as a model is given them. `start` is what the tokenizer puts before each
    document and prompt.
    """

    forget: list[Sequence[int]]
    passages: list[list[int]]
    retain: list[Sequence[int]]
    holdout: list[list[int]]
    retained: list[list[int]]
    verbatim_prompts: list[list[int]]
    verbatim_truths: list[str]
    verbatim_tokens: list[list[int]]
    forget_prompts: list[list[int]]
    forget_answers: list[str]
    forget_options: list[Options]
    retain_prompts: list[list[int]]
    retain_answers: list[str]
    retain_options: list[Options]
    start: list[int]

    @property
    def rouge_tokenizer(self) -> RougeTokenizer:
        """Tokenizer of ROUGE that fits the true answers of all three sets."""
        return tokenizer_for([*self.verbatim_truths, *self.forget_answers, *self.retain_answers])

    @property
    def there(self) -> frozenset[Need]:
        """What metrics may need and the data has."""
        splits: tuple[tuple[Need, list[Options]], ...] = (
            ("forget_wrong", self.forget_options),
            ("retain_wrong", self.retain_options),
        )
        return frozenset(need for need, options in splits if any(o.wrong for o in options))

    @property
    def asked(self) -> dict[str, list[Any]]:
        """What is measured, by part: documents, prompts and answers, without what unlearning sees."""
        parts = (one.name for one in fields(self) if one.name not in ("forget", "retain"))
        return {name: list(getattr(self, name)) for name in parts}

    @property
    def verbatim(self) -> list[Answered]:
        """Prompts of M1 with their truths."""
        pairs = zip(self.verbatim_prompts, self.verbatim_tokens, strict=True)
        return [Answered([*prompt, *truth], len(truth)) for prompt, truth in pairs]


def check_asked(corpus: Corpus, config: Measuring) -> None:
    """Refuse metrics on demand that cannot be measured, as those of wrong answers where the questions that are asked have none.

    Raises:
        ValueError: one cannot; one line that names the metric.
    """
    for name in config.evaluation.metrics:
        check = metric_named(name).check
        if check is not None:
            check(config)
    asked = config.evaluation.questions
    splits: tuple[tuple[Need, Sequence[Question]], ...] = (
        ("forget_wrong", corpus.forget_questions),
        ("retain_wrong", corpus.retain_questions),
    )
    for need, questions in splits:
        for name in config.evaluation.metrics:
            if need in metric_named(name).needs and not any(q.wrong for q in questions[:asked]):
                rule = "perturbed_answer, wrong answers, for the questions of its split"
                raise ValueError(f"evaluation.metrics: {name} needs data with {rule}, got none")


def make_probes(corpus: Corpus, tokenizer: Any, config: Measuring) -> Probes:
    """Tokenize documents, passages and questions as `config` says."""
    longest = config.corpus.passage_tokens

    def measured(texts: Sequence[str]) -> list[list[int]]:
        return encode_measured(worded(corpus, texts, tokenizer), tokenizer, longest)

    passages = measured(corpus.passages)
    verbatim = _verbatim(corpus, passages, tokenizer, config.corpus)
    truths = [truth for _, truth in verbatim]
    asked, shots, cue = (getattr(config.evaluation, name) for name in ("questions", "shots", "answer_cue"))
    forget, retain = corpus.forget_questions[:asked], corpus.retain_questions[:asked]
    put_forget = wording_of(corpus, corpus.forget_shots[:shots], cue, tokenizer)
    put_retain = wording_of(corpus, corpus.retain_shots[:shots], cue, tokenizer)
    return Probes(
        forget=encode_unlearned(corpus, corpus.forget, tokenizer, longest),
        passages=passages,
        retain=encode_unlearned(corpus, corpus.retain, tokenizer, longest),
        holdout=measured(corpus.holdout),
        retained=measured(corpus.retained),
        verbatim_prompts=[prompt for prompt, _ in verbatim],
        verbatim_truths=[tokenizer.decode(t, skip_special_tokens=True) for t in truths],
        verbatim_tokens=truths,
        forget_prompts=[started(put_forget.prompt(q), tokenizer) for q in forget],
        forget_answers=[q.answer for q in forget],
        forget_options=[_options(q, put_forget, tokenizer) for q in forget],
        retain_prompts=[started(put_retain.prompt(q), tokenizer) for q in retain],
        retain_answers=[q.answer for q in retain],
        retain_options=[_options(q, put_retain, tokenizer) for q in retain],
        start=start_tokens(tokenizer),
    )


def _verbatim(
    corpus: Corpus, passages: Sequence[list[int]], tokenizer: Any, settings: CorpusConfig
) -> list[tuple[list[int], list[int]]]:
    """Return the prompts of M1 and their truths: those of the data set, as MUSE cuts them, or the passages in two.

    A truth of MUSE's has `probe_tokens` tokens with its start tokens, which are no part of what is compared.
    """
    most = settings.probe_tokens
    if corpus.verbatim:
        start = len(start_tokens(tokenizer))
        return [
            (started(item.prompt, tokenizer), started(item.truth, tokenizer)[:most][start:]) for item in corpus.verbatim
        ]
    cuts = [int(len(passage) * settings.prompt_share) for passage in passages]
    return [(passage[:cut], passage[cut : cut + most]) for passage, cut in zip(passages, cuts, strict=True)]


def encode_training(corpus: Corpus, texts: Sequence[str], tokenizer: Any, longest: int) -> list[Sequence[int]]:
    """Return the texts of a corpus as a model is trained on them: documents that end, or running text in chunks.

    Of a question with its answer the tokens of the answer and of the end count, where the corpus says so.
    """
    if corpus.answers_only:
        return [_question_document(corpus, text, tokenizer, longest) for text in texts]
    encode = encode_chunks if corpus.running else encode_documents
    return [*encode(worded(corpus, texts, tokenizer), tokenizer, longest)]


def _question_document(corpus: Corpus, text: str, tokenizer: Any, longest: int) -> Sequence[int]:
    if text not in corpus.questions_of:
        return encode_documents([text], tokenizer, longest)[0]
    document = answered_document(corpus, text, tokenizer)
    span = (document.answer, len(document.text))
    return encode_answers(document.text, [span], tokenizer, longest, end=True)


def encode_unlearned(corpus: Corpus, texts: Sequence[str], tokenizer: Any, longest: int) -> list[Sequence[int]]:
    """Return the texts of a corpus as unlearning reads them: as in training, but of sheets of questions the answers count alone."""
    documents = encode_training(corpus, texts, tokenizer, longest)
    if not corpus.sheet_answers:
        return documents
    spans = map(answer_spans, texts)
    return [
        encode_answers(text, own, tokenizer, longest) if own else document
        for text, own, document in zip(texts, spans, documents, strict=True)
    ]


def _options(question: Question, wording: Wording, tokenizer: Any) -> Options:
    said = question.answer if question.paraphrase is None else question.paraphrase
    wrong = tuple(_answered(question, text, wording, tokenizer) for text in question.wrong)
    right, paraphrase = (_answered(question, text, wording, tokenizer) for text in (question.answer, said))
    return Options(right, paraphrase, wrong)


def _answered(question: Question, answer: str, wording: Wording, tokenizer: Any) -> Answered:
    """Return a prompt and an answer, tokenized as one text; the answer's tokens are what is new."""
    before = started(wording.prompt(question).rstrip(" "), tokenizer)
    whole = started(wording.answered(question, answer), tokenizer)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
    return Answered(whole, len(whole) - shared)
