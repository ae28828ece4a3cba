"""What a profile says of the text of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from unforgotten.experiments.data.registry import corpus_named
from unforgotten.experiments.section import Section, without


class CorpusConfig(Section):
    """Where the text comes from, and how much of it.

    Attributes:
        kind: name of one of `unforgotten corpora`.
        path: directory of a data set in its own layout. Absent, `repo` and then `fallback` decide.
        repo, revision: data set of the Hugging Face Hub, read through `datasets`, and its branch, tag or commit.
        split: part of the data set that is to be forgotten, one of `unforgotten corpora`; None for the first of them.
        asked: questions of M4 in TOFU: those of the retain split, or of real authors, or of world facts.
        pairing: order of the documents to keep in unlearning: "shuffled" is their own; "fixed" puts document i modulo their number
            beside document i of those to forget, as MUSE does: what is beyond their number is never seen.
        fallback: choice for data that is not there: "fiction" takes the generated corpus and says so in the rows.
        trained_on: what models are trained on, for "muse" only: "raw" is all of `raw/forget` and `raw/retain1` in chunks of
            `passage_tokens`, as in MUSE; "sample" the texts of `privleak` that are measured, one document each.
        general: stories of the base model's own training text.
        passages: forget passages that are measured, and as many retain passages.
        holdout: passages that no model sees, for M3.
        questions: questions kept of each story.
        sheets: number of times that each split's questions are shuffled into sheets of `sheet_size` to train on.
        forget_sheets: number of the shuffled orders of the forget questions that unlearning sees. 0: the articles
            alone, as in MUSE; M2 then falls only where forgetting the text also forgets its facts.
        sheet_loss: tokens of a sheet of questions that the losses of unlearning count, those of its answers or all. Models are trained on
            all of them.
        passage_tokens: longest document; longer text is cut.
        prompt_share: share of a passage that prompts M1.
        probe_tokens: longest continuation of M1.
    """

    kind: str = "fiction"
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    split: str | None = None
    asked: Literal["retain", "real_authors", "world_facts"] = "retain"
    pairing: Literal["shuffled", "fixed"] = "shuffled"
    fallback: Literal["fiction", "none"] = "none"
    trained_on: Literal["raw", "sample"] = "raw"
    general: int = Field(default=600, ge=10)
    passages: int = Field(default=24, ge=4)
    holdout: int = Field(default=48, ge=4)
    questions: int = Field(default=2, ge=1, le=4)
    sheets: int = Field(default=3, ge=2)
    sheet_size: int = Field(default=6, ge=1)
    forget_sheets: int = Field(default=0, ge=0)
    sheet_loss: Literal["answers", "all"] = "all"
    passage_tokens: int = Field(default=192, ge=16)
    prompt_share: float = Field(default=0.4, gt=0, lt=1)
    probe_tokens: int = Field(default=64, ge=4)

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave defaults out that older configurations do not have."""
        since = {
            "repo": None,
            "revision": None,
            "split": None,
            "asked": "retain",
            "pairing": "shuffled",
            "sheet_loss": "all",
        }
        return without(handler(self), **since)

    @model_validator(mode="after")
    def _is_there(self) -> CorpusConfig:
        known = corpus_named(self.kind).splits
        if self.split is not None and self.split not in known:
            raise ValueError(
                f"corpus.split of {self.kind} must be one of {', '.join(known) or 'none'}, got {self.split!r}"
            )
        return self

    @model_validator(mode="after")
    def _sheets_exist(self) -> CorpusConfig:
        if self.forget_sheets >= self.sheets:
            raise ValueError(
                f"forget_sheets must be below sheets={self.sheets}, got forget_sheets={self.forget_sheets}"
            )
        if self.sheet_loss == "answers" and self.kind != "fiction":
            raise ValueError(
                f"sheet_loss must be all where corpus.kind has no sheets, got answers with kind={self.kind}"
            )
        return self
