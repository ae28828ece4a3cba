"""Of a sheet of questions the answers count alone: which tokens they are, and what the losses make of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="losses need unforgotten[experiments]")

from unforgotten.experiments.compute.parts import COUNTS, parts_of
from unforgotten.experiments.data.corpus import read_fiction, write_fiction
from unforgotten.experiments.data.question import Question
from unforgotten.experiments.data.sheets import answer_spans, encode_answers
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.methods.reference import make_reference
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.methods.settings import settings_of
from unforgotten.experiments.methods.terms import LossMethod
from unforgotten.experiments.methods.view import View
from unforgotten.experiments.metrics.probes import encode_training, encode_unlearned
from unforgotten.experiments.models.batches import Batch, Counted, pad
from unforgotten.experiments.models.log_probs import cross_entropy
from unforgotten.experiments.models.scoring import next_logits, score_batch
from unforgotten.experiments.models.tokenizer import train_tokenizer
from unforgotten.verification.domains.micro_target import micro_documents, micro_target, micro_task

MICRO = str(Path(__file__).parents[2] / "micro.yaml")
RTOL = 4 * torch.finfo(torch.float32).eps ** 0.5  # plain agreement of float32 sums in another order, relative
TEXT = Question("Who leads Orvek?", "Mara Tolin").sheet_line() + Question("Where is it?", "in Brastow").sheet_line()


@pytest.fixture(scope="module")
def corpus_and_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("fiction")
    write_fiction(load_config(MICRO, overrides=["corpus.forget_sheets=1"]).corpus, 0, folder)
    corpus = read_fiction(folder)
    return corpus, train_tokenizer(corpus.general, 400)


def marked(row: Counted, tokenizer: Any) -> str:
    return str(tokenizer.decode([t for t, c in zip(row.tokens, row.counted, strict=True) if c]))


def test_the_tokens_that_count_spell_the_answers(corpus_and_tokenizer: tuple[Any, Any]) -> None:
    _, tokenizer = corpus_and_tokenizer
    assert [TEXT[a:b] for a, b in answer_spans(TEXT)] == ["Mara Tolin", "in Brastow"]
    row = encode_answers(TEXT, answer_spans(TEXT), tokenizer, 512)
    assert marked(row, tokenizer).split() == ["Mara", "Tolin", "in", "Brastow"]
    assert answer_spans("Orvek grew. " + TEXT) == []
    with pytest.raises(ValueError, match=r"passage_tokens must reach an answer .* got 4$"):
        encode_answers(TEXT, answer_spans(TEXT), tokenizer, 4)


def test_sheets_are_masked_in_unlearning_alone_and_articles_never(corpus_and_tokenizer: tuple[Any, Any]) -> None:
    corpus, tokenizer = corpus_and_tokenizer
    plain = encode_training(corpus, corpus.forget, tokenizer, 512)
    assert encode_unlearned(corpus, corpus.forget, tokenizer, 512) == plain
    answers = replace(corpus, sheet_answers=True)
    assert encode_training(answers, corpus.forget, tokenizer, 512) == plain
    rows = encode_unlearned(answers, corpus.forget, tokenizer, 512)
    assert [list(row) for row in rows] == plain
    sheets = [text.startswith("Question: ") for text in corpus.forget]
    assert [isinstance(row, Counted) for row in rows] == sheets
    assert any(sheets)
    assert not all(sheets)


def test_a_question_of_tofu_counts_its_answer_and_the_end(corpus_and_tokenizer: tuple[Any, Any]) -> None:
    corpus, tokenizer = corpus_and_tokenizer
    question = Question("Who leads Orvek?", "Mara\nTolin")
    asked = replace(corpus, answers_only=True, questions_of={question.sheet_line(): question})
    (row,) = encode_training(asked, [question.sheet_line()], tokenizer, 512)
    assert isinstance(row, Counted)
    assert row.tokens[-1] == tokenizer.eos_token_id
    assert row.counted[-1]
    assert marked(row, tokenizer).split()[:2] == ["Mara", "Tolin"]


def counted(documents: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Every other document, with every third token counted and never the first."""
    return [
        Counted(tuple(row), tuple(i % 3 == 1 for i in range(len(row)))) if k % 2 else row
        for k, row in enumerate(documents)
    ]


def batch_of(documents: Sequence[Sequence[int]]) -> Batch:
    return pad(documents, 0, documents=range(len(documents)))


def test_one_value_by_hand() -> None:
    """-(log p(b | a) + log p(d | a b c)) / 2, of the document a b c d in which b and d count."""
    model, tokens = micro_target(), (1, 280, 17, 44)
    batch = batch_of([Counted(tokens, (False, True, False, True)), [1]])
    with torch.no_grad():
        log_p = next_logits(model, pad([tokens], 0))[0].double().log_softmax(-1)
        by_hand = -(log_p[0, 280] + log_p[2, 44]) / 2
        found = cross_entropy(score_batch(model, batch))
    assert math.isclose(float(found), float(by_hand), rel_tol=RTOL)
    assert batch.places[0].tolist() == [True, False, True, True]


@pytest.mark.parametrize("mean", COUNTS)
def test_parts_of_a_batch_keep_what_counts(mean: Any) -> None:
    rows = counted(micro_documents()[:5])
    parts = parts_of(batch_of(rows), mean, 2)
    assert sum(share for _, share in parts) == pytest.approx(1)
    for part, _ in parts:
        alone = batch_of([rows[k] for k in part.documents])
        assert part.scored.tolist() == alone.scored.tolist()
        assert COUNTS[mean](part) == COUNTS[mean](alone)


TERMS = {
    term.name: term
    for method in METHODS.values()
    if isinstance(method, LossMethod)
    for term in (method.forget, method.retain)
    if term is not None
}


@pytest.mark.parametrize("name", TERMS)
def test_every_loss_looks_at_what_counts_alone_and_sums_over_parts(name: str) -> None:
    term, task, model = TERMS[name], micro_task(), micro_target()
    method = next(m for m in METHODS.values() if isinstance(m, LossMethod) and term in (m.forget, m.retain))
    settings = settings_of(task, method.settings())
    rows = counted(micro_documents()[:4])
    seen = make_reference(micro_target(), (rows, rows), 4, task.arithmetic).forget
    view = View(model, batch_of(rows), seen)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    given: list[Any] = []
    head: Any = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, __, logits: given.append(logits))
    loss = term.loss(view, settings)
    hook.remove()
    moved = torch.stack([torch.autograd.grad(loss, logits)[0].abs().sum(-1) > 0 for logits in given]).any(0)
    assert not bool((moved & ~view.real).any())
    assert bool(moved.any())
    if term.mean is not None:
        with torch.no_grad():
            parts = parts_of(view.batch, term.mean, 1)
            summed = sum(share * float(term.loss(View(model, part, seen), settings)) for part, share in parts)
        assert summed == pytest.approx(loss.item(), rel=RTOL)


def test_a_corpus_without_sheets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sheet_loss must be all where corpus\.kind has no sheets"):
        load_config(MICRO, overrides=["corpus.kind=muse", "corpus.sheet_loss=answers"])


def test_the_default_is_in_no_configuration() -> None:
    plain = load_config(MICRO)
    assert "sheet_loss" not in plain.corpus.model_dump()
    assert plain.hash != load_config(MICRO, overrides=["corpus.sheet_loss=answers"]).hash
