"""The fictional corpus: seeded, free of contradictions, in MUSE's layout."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the corpus module needs unforgotten[experiments]")

from unforgotten.experiments.data.corpus import read_fiction, write_fiction
from unforgotten.experiments.data.fiction import write_stories
from unforgotten.experiments.data.settings import CorpusConfig


@pytest.mark.parametrize("seed", range(5))
def test_no_question_has_two_answers(seed: int) -> None:
    answers: dict[str, str] = {}
    for story in write_stories(700, seed=seed):
        for question, answer in story.questions:
            assert answers.setdefault(question, answer) == answer
    assert len(answers) > 2000


def test_every_answer_stands_in_its_article_and_every_slot_is_filled() -> None:
    for story in write_stories(300, seed=1):
        assert "{" not in story.text
        assert len(story.questions) >= 2
        for question, answer in story.questions:
            assert answer in story.text
            assert "{" not in question + answer


def test_one_seed_gives_one_corpus_and_another_seed_another() -> None:
    assert write_stories(50, seed=3) == write_stories(80, seed=3)[:50]
    assert write_stories(50, seed=3) != write_stories(50, seed=4)


def test_the_splits_share_no_article_and_no_question(tmp_path: Path) -> None:
    write_fiction(CorpusConfig(), 0, tmp_path)
    corpus = read_fiction(tmp_path)
    assert len(corpus.passages) == 24
    assert not set(corpus.forget) & set(corpus.retain)
    assert not set(corpus.passages) & set(corpus.holdout)
    assert set(corpus.passages) <= set(corpus.forget)
    questions = [q.question for q in corpus.forget_questions + corpus.retain_questions]
    assert len(set(questions)) == len(questions) == 96
    read = " ".join(corpus.general + corpus.retain)
    assert not any(q.question in read for q in corpus.forget_questions)
