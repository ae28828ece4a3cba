"""TOFU: questions on authors who do not exist, with their answers. Source: Maini et al. 2024, arXiv 2401.06121.

One file a split, `<split>.json` or `.jsonl`, JSON lines or a JSON list of objects with `question` and `answer`:
`forget01` and `retain99`, `forget05` and `retain95`, `forget10` and `retain90`: what is forgotten and what is kept;
`holdout01`, `holdout05`, `holdout10`: authors that no model read of;
`real_authors`, `world_facts`: questions on the world; `<forget split>_perturbed`, `retain_perturbed`, `real_authors_perturbed`,
`world_facts_perturbed`: questions with `paraphrased_answer`, and `perturbed_answer`, a list of wrong ones.

A document is one question with its answer: as a chat where the tokenizer has a template, or as a line of a sheet, see `chat.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.data.corpus import Corpus, prepare_fiction
from unforgotten.experiments.data.hub import Part, fetch
from unforgotten.experiments.data.layout import questions_of, read_lines
from unforgotten.experiments.data.source import split_of

if TYPE_CHECKING:
    from unforgotten.experiments.data.question import Question
    from unforgotten.experiments.data.settings import CorpusConfig

RETAIN: Mapping[str, str] = {"forget10": "retain90", "forget05": "retain95", "forget01": "retain99"}
"""What is kept beside each split that is forgotten."""
HOLDOUT: Mapping[str, str] = {name: name.replace("forget", "holdout") for name in RETAIN}
SHOTS = 10
SUFFIXES = (".json", ".jsonl")


class Tofu:
    """TOFU, a directory of its files or the data set of the Hub. A `DataSet`."""

    name = "tofu"
    statement = "TOFU: a directory of its JSON lines, corpus.path, or the data set of the Hub, corpus.repo"
    source = "Maini et al. 2024, arXiv 2401.06121"
    splits = tuple(RETAIN)
    settings: Mapping[str, Mapping[str, Any]] = {
        "corpus": {"passages": 400, "holdout": 400, "passage_tokens": 512, "probe_tokens": 128},
        "evaluation": {"shots": 0, "answer_tokens": 128},
    }

    def read(self, config: CorpusConfig, seed: int, folder: Path) -> tuple[Corpus, str]:
        """Read it, or by `config.fallback` generate fiction; the origin is "tofu-<split>:<place>".

        Raises:
            ValueError: it is not there, or a file is missing or not in TOFU's layout.
        """
        origin = f"tofu-{split_of(config, Tofu.splits)}"
        if config.path is not None and config.path.is_dir():
            return read_tofu(config.path, config), f"{origin}:{config.path}"
        if config.path is None and config.repo is not None:
            place = fetch(config, {f"{name}.json": Part(name, "train") for name in files_of(config)}, folder)
            return read_tofu(folder, config), f"{origin}:{place}"
        if config.fallback == "none":
            raise ValueError(f"corpus.path must be a directory in TOFU's layout, got {config.path}")
        return prepare_fiction(config, seed, folder)


def files_of(config: CorpusConfig) -> list[str]:
    """Return the names of the files that a run reads."""
    split = split_of(config, Tofu.splits)
    return [split, f"{split}_perturbed", RETAIN[split], HOLDOUT[split], f"{config.asked}_perturbed"]


def read_tofu(folder: Path, config: CorpusConfig) -> Corpus:
    """Read a corpus in TOFU's layout.

    The questions of M2 and M4 are those with wrong answers, or all of the split where there is no such file. Examples before
    them, of which TOFU has none, are the first of the retain split that are not asked.

    Raises:
        ValueError: a file is missing or not in TOFU's layout.
    """
    split = split_of(config, Tofu.splits)
    forget, retain = _questions(folder, split), _questions(folder, RETAIN[split])
    kept = RETAIN[split] if config.asked == "retain" else config.asked
    forget_asked = _questions(folder, f"{split}_perturbed", split)
    retain_asked = _questions(folder, f"{config.asked}_perturbed", kept)
    taken = {q.question for q in (*forget_asked, *retain_asked)}
    shots = tuple(q for q in retain if q.question not in taken)[:SHOTS]
    holdout = _questions(folder, HOLDOUT[split])
    documents = {q.sheet_line(): q for q in (*forget, *retain, *holdout)}
    return Corpus(
        general=(),
        forget=_sheets(forget),
        forget_rest=(),
        retain=_sheets(retain),
        passages=_sheets(forget)[: config.passages],
        holdout=_sheets(holdout)[: config.holdout],
        retained=_sheets(retain)[: config.passages],
        forget_questions=forget_asked,
        retain_questions=retain_asked,
        forget_shots=shots,
        retain_shots=shots,
        answers_only=True,
        questions_of=documents,
    )


def _sheets(questions: tuple[Question, ...]) -> tuple[str, ...]:
    return tuple(question.sheet_line() for question in questions)


def _questions(folder: Path, *names: str) -> tuple[Question, ...]:
    """Return the questions of the first of these files that exists."""
    paths = [folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
    path = next((path for path in paths if path.exists()), folder / f"{names[-1]}{SUFFIXES[0]}")
    return questions_of(path, read_lines(path, "must exist in a directory of TOFU's layout, or as .jsonl"))


CORPORA = (Tofu(),)
