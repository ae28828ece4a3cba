"""The text of a run, tokenized where text and tokenizer are here, else counted by characters; nothing is fetched or kept."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.metrics.probes import Probes, encode_training, make_probes
from unforgotten.experiments.models.bases.registry import BASES
from unforgotten.experiments.models.bases.scratch import Scratch
from unforgotten.experiments.models.batches import encode_documents
from unforgotten.experiments.models.saved import LOADING, load_tokenizer
from unforgotten.experiments.plan.known import CHARACTERS_A_TOKEN, known_corpus
from unforgotten.experiments.plan.shapes import HUB


@dataclass(frozen=True)
class Texts:
    """Lengths in tokens of what a run reads.

    Attributes:
        origin: where the text is from.
        counted: how tokens were counted.
        training: lengths of the documents of each model that is trained: "base", "target", "retrained".
        probes: all that unlearning sees and metrics ask.
    """

    origin: str
    counted: str
    training: dict[str, list[int]]
    probes: Probes

    @property
    def parts(self) -> dict[str, list[int]]:
        """Lengths of the documents and prompts of each part."""
        p = self.probes
        rows: dict[str, Sequence[Sequence[int]]] = {
            "forget": p.forget,
            "retain": p.retain,
            "passages": p.passages,
            "holdout": p.holdout,
            "retain texts measured": p.retained,
            "prompts of M1": p.verbatim_prompts,
            "prompts of M2": p.forget_prompts,
            "prompts of M4": p.retain_prompts,
        }
        return {name: [len(row) for row in documents] for name, documents in rows.items()}


class Counter:
    """A tokenizer that counts: every text is as many tokens as its characters make at CHARACTERS_A_TOKEN, after a start token."""

    all_special_ids = (1, 2)
    bos_token_id, eos_token_id, pad_token_id = 1, 2, None
    chat_template = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return equal tokens, one start token before them if asked."""
        return [*([1] if add_special_tokens else []), *[3] * math.ceil(len(text) / CHARACTERS_A_TOKEN)]

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        """Return a text of about as many characters."""
        return "x" * int(len(tokens) * CHARACTERS_A_TOKEN)


def texts_of(config: RunConfig) -> Texts | None:
    """Return the text of a run; None of a data set that is not here and not known.

    Raises:
        ValueError: a directory is there and not in its layout.
    """
    found = _corpus(config)
    if found is None:
        return None
    corpus, origin = found
    tokenizer, counted = _tokenizer(config, corpus)
    longest = config.corpus.passage_tokens
    learned = {"target": corpus.forget + corpus.forget_rest + corpus.retain, "retrained": corpus.retain}
    training = {name: _lengths(encode_training(corpus, t, tokenizer, longest)) for name, t in learned.items()}
    training["base"] = _lengths(encode_documents(corpus.general, tokenizer, longest))
    return Texts(origin, counted, training, make_probes(corpus, tokenizer, config))


def _lengths(rows: Sequence[Sequence[int]]) -> list[int]:
    return [len(row) for row in rows]


def _corpus(config: RunConfig) -> tuple[Corpus, str] | None:
    corpus = config.corpus
    here = corpus.path is not None and corpus.path.is_dir()
    if not here and corpus.repo is not None and corpus.path is None:
        known = known_corpus(config)
        return None if known is None else (known, f"{corpus.kind}:{HUB}{corpus.repo}, published sizes")
    if not here and corpus.kind != "fiction" and corpus.fallback == "none":
        return None
    with tempfile.TemporaryDirectory() as folder:
        return prepare_corpus(corpus, config.seed, Path(folder))


def _tokenizer(config: RunConfig, corpus: Corpus) -> tuple[Any, str]:
    """Return a tokenizer that is here, or one that counts characters."""
    base = BASES.get(config.base.kind)
    given = config.models.tokenizer or config.models.target
    if given is None and config.base.kind == "directory":
        given = str(config.base.path)
    if given is not None and not given.startswith(HUB):
        try:
            return load_tokenizer(Path(given)), "the model's tokenizer"
        except LOADING:
            return Counter(), _by_characters()
    if given is None and isinstance(base, Scratch) and corpus.general:
        from unforgotten.experiments.models.tokenizer import train_tokenizer

        return train_tokenizer(corpus.general, base.shape_of(config.base).vocabulary), "the run's own tokenizer"
    return Counter(), _by_characters()


def _by_characters() -> str:
    return f"assumed {CHARACTERS_A_TOKEN} characters a token"
