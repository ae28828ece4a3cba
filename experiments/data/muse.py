"""MUSE, News and Books, and whatever is in its layout. Source: Shi et al. 2024, arXiv 2407.06460.

`raw/forget`, `raw/retain1`: texts to train on, as `.txt`, one running text, or `.json`, a list of documents;
`scal/forget_1` to `_4`, `sust/forget_1` to `_4`: other texts to forget, larger ones and later ones;
`verbmem/forget.json`: prompts and continuations; `knowmem/{forget,retain}_qa[_icl].json`: questions;
`privleak/{forget,holdout,retain}.json`: texts for the membership test and the retain loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.data.corpus import Corpus, prepare_fiction
from unforgotten.experiments.data.hub import Part, fetch
from unforgotten.experiments.data.layout import read_asked, read_documents, read_list, read_raw, read_running
from unforgotten.experiments.data.question import Verbatim
from unforgotten.experiments.data.source import split_of

if TYPE_CHECKING:
    from unforgotten.experiments.data.settings import CorpusConfig

BETWEEN = "\n\n"
"""What stands between two documents of a running text of MUSE."""
REQUESTS = tuple(f"{configuration}/forget_{i}" for configuration in ("scal", "sust") for i in range(1, 5))


class Muse:
    """A data set in MUSE's layout. A `DataSet`."""

    name = "muse"
    statement = "MUSE News or Books: a directory, corpus.path, or a data set of the Hub, corpus.repo"
    source = "Shi et al. 2024, arXiv 2407.06460"
    splits = ("raw/forget", *REQUESTS)
    settings: Mapping[str, Mapping[str, Any]] = {
        "corpus": {"passage_tokens": 2048, "probe_tokens": 128},
        "evaluation": {"shots": 10, "answer_tokens": 32, "answer_cue": "Answer: "},
    }

    def read(self, config: CorpusConfig, seed: int, folder: Path) -> tuple[Corpus, str]:
        """Read it, or by `config.fallback` generate fiction; the origin is "muse:<place>" or "muse-sample:<place>".

        Raises:
            ValueError: it is not there, or a file is missing or not in MUSE's layout.
        """
        origin = "muse" if config.trained_on == "raw" else "muse-sample"
        if config.path is not None and config.path.is_dir():
            return _as_trained(read_muse(config.path, config)), f"{origin}:{config.path}"
        if config.path is None and config.repo is not None:
            place = fetch(config, parts_of(config), folder)
            return _as_trained(read_muse(folder, config)), f"{origin}:{place}"
        if config.fallback == "none":
            raise ValueError(f"corpus.path must be a directory in MUSE's layout, got {config.path}")
        return prepare_fiction(config, seed, folder)


def parts_of(config: CorpusConfig) -> dict[str, Part]:
    """Return what a run reads of a data set of the Hub, by the file that takes it."""
    configuration, _, split = split_of(config, Muse.splits).partition("/")
    parts = {f"privleak/{name}.json": Part("privleak", name, _text) for name in ("forget", "holdout", "retain")}
    parts |= {
        f"knowmem/{name}{icl}.json": Part("knowmem", f"{name}{icl}")
        for name in ("forget_qa", "retain_qa")
        for icl in ("", "_icl")
    }
    parts["verbmem/forget.json"] = Part("verbmem", "forget")
    if config.trained_on == "raw":
        parts["raw/retain1.json"] = Part("raw", "retain1", _text)
        parts[f"{configuration}/{split}.json"] = Part(configuration, split, _text)
    return parts


def _text(row: Mapping[str, Any]) -> str:
    return str(row["text"])


def read_muse(folder: Path, config: CorpusConfig) -> Corpus:
    """Read a corpus in MUSE's layout.

    Models are trained on all of `config.split` and `raw/retain1`, as running text; or, by `config.trained_on`, on the sample
    that is measured. Measured are as many texts of `privleak` as `config` asks for. The retain loss is that of the first
    texts of `raw/retain1.json`, or of `privleak/retain.json`, a sample of it. Prompts of M1 are as many of `verbmem/forget.json`.

    Raises:
        ValueError: a file is missing or not in MUSE's layout.
    """
    n = config.passages
    passages = read_documents(folder / "privleak/forget.json")[:n]
    retained = _retained(folder)[:n]
    running = config.trained_on == "raw"
    return Corpus(
        general=(),
        forget=(_running(folder, split_of(config, Muse.splits)),) if running else passages,
        forget_rest=(),
        retain=(_running(folder, "raw/retain1"),) if running else retained,
        passages=passages,
        holdout=read_documents(folder / "privleak/holdout.json")[: config.holdout],
        retained=retained,
        running=running,
        verbatim=_verbatim(folder / "verbmem/forget.json")[:n],
        **read_asked(folder),
    )


def _as_trained(corpus: Corpus) -> Corpus:
    """Leave MUSE's prompts of M1 to models that are trained on all of its text: a sample of it holds none of them."""
    return corpus if corpus.running else replace(corpus, verbatim=())


def _verbatim(path: Path) -> tuple[Verbatim, ...]:
    """Return prompts and truths of M1; none where the file is missing."""
    if not path.exists():
        return ()
    try:
        return tuple(Verbatim(str(item["prompt"]), str(item["gt"])) for item in read_list(path))
    except (TypeError, KeyError):
        raise ValueError(f"{path}: must be a list of objects with prompt and gt") from None


def _running(folder: Path, name: str) -> str:
    """Return a text as MUSE trains on it: its `.txt`, or its documents with an empty line between them."""
    path = folder / f"{name}.txt"
    if path.exists():
        return read_running(path)
    listed = path.with_suffix(".json")
    if not listed.exists():
        rule = "must exist for training, or {name}.json; corpus.trained_on=sample trains on the texts of privleak"
        raise ValueError(f"{path}: {rule.format(name=name)}")
    return BETWEEN.join(read_raw(listed))


def _retained(folder: Path) -> tuple[str, ...]:
    """Return texts of the retain split, one document each; pieces of `raw/retain1.txt` where no file lists documents."""
    listed = [folder / name for name in ("raw/retain1.json", "privleak/retain.json")]
    path, whole = next((path for path in listed if path.exists()), listed[-1]), folder / "raw/retain1.txt"
    if path.exists() or not whole.exists():
        return read_raw(path)
    return tuple(piece for piece in read_running(whole).split(BETWEEN) if piece.strip())


CORPORA = (Muse(),)
