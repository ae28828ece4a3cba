"""The configuration of a run, validated as a whole before anything starts.

In goes the tree of a profile (`load_config.py` reads it), out comes one frozen `RunConfig`, which is echoed into
`config.json` and hashed into every row:

    RunConfig.model_validate(yaml.safe_load(text)).unlearning.lr["bf16"]
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from unforgotten.experiments.compute.settings import ComputeConfig
from unforgotten.experiments.data.registry import CORPORA, corpus_named
from unforgotten.experiments.data.settings import CorpusConfig
from unforgotten.experiments.methods.method import keeps_states
from unforgotten.experiments.methods.registry import METHODS, method_named
from unforgotten.experiments.methods.waypoints import Keep
from unforgotten.experiments.metrics.on_demand.leak_names import check_samples
from unforgotten.experiments.metrics.registry import METRICS, metric_named
from unforgotten.experiments.metrics.settings import HarnessConfig, LeakConfig
from unforgotten.experiments.models.bases.registry import base_named
from unforgotten.experiments.own import is_own, label_of, without_variant
from unforgotten.experiments.quantizers.registry import ours_of
from unforgotten.experiments.section import Section, without
from unforgotten.records.depths import RETRAINED

MUSE: Mapping[str, Mapping[str, Any]] = corpus_named("muse").settings
"""MUSE's own settings by section, which a run on MUSE has where its profile says nothing."""
Storage = Literal["fp32", "bf16", "bf16-sr"]
Autocast = Literal["none", "bf16"]
Products = Literal["native", "float32"]
Optimizer = Literal["adamw", "adamw-clamped", "sgd", "sign"]
Bf16Products = Literal["auto", "native", "float32"]
Depth = float | Literal["retrained"]


class BaseConfig(Section):
    """The base model.

    Attributes:
        kind: name of one of `unforgotten models`, or a reference to one's own.
        vocabulary, width, feed_forward, layers, heads, positions: sizes of a model of random weights; None for those of the
            kind.
        experts, experts_per_token: number of experts of "moe", and of those that a token goes to.
        path: directory of "directory".
        repo, revision: repository of "hub", and its branch, tag or commit.
    """

    kind: str = "tiny-llama"
    vocabulary: int | None = Field(default=None, ge=300)
    width: int | None = Field(default=None, ge=16)
    feed_forward: int | None = Field(default=None, ge=16)
    layers: int | None = Field(default=None, ge=1)
    heads: int | None = Field(default=None, ge=1)
    positions: int | None = Field(default=None, ge=64)
    experts: int = Field(default=8, ge=1)
    experts_per_token: int = Field(default=2, ge=1)
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        base_named(kind)
        return kind


class GivenModels(Section):
    """Models that are there already, each a directory or `hub:OWNER/NAME[@REVISION]`; what is not given is trained.

    Attributes:
        target: model that learned everything; with it no base is trained, and the tokenizer is its own.
        retrained: model that never saw what is to be forgotten; M3 compares with it.
        tokenizer: tokenizer of both, where they come without one.
        stored_in: format that the target, given or trained, is quantized in and read back from before anything is unlearned: a
            model that was published in 4 bits. One of ours that needs no calibration; None for a target that was never quantized.
    """

    target: str | None = None
    retrained: str | None = None
    tokenizer: str | None = None
    stored_in: str | None = None

    @field_validator("stored_in")
    @classmethod
    def _has_values(cls, name: str | None) -> str | None:
        if name is not None and ours_of(name) is None:
            raise ValueError(f"must be a format of this project that is not calibrated, got {name!r}")
        return name

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave a default out that older configurations do not have."""
        return without(handler(self), tokenizer=None, stored_in=None)


class TrainingConfig(Section):
    """Language-model training; `epochs` of the documents, or `steps` where given."""

    lr: float = Field(gt=0)
    batch: int = Field(default=16, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    warmup_steps: int = Field(default=20, ge=0)
    final_lr_share: float = Field(default=0.05, ge=0, le=1)
    autocast: Autocast = "none"


class UnlearningConfig(Section):
    """AdamW or another optimizer, constant lr, no weight decay, on pairs of a forget and a retain batch.

    Attributes:
        methods: names of `METHODS`, or references to methods of one's own, each with what it sets differently. With "+" and a
            variant behind it a name may come several times: `NPO_GDR_SURE+row-99: {mask: row, threshold: 99}`.
        lr: learning rate of each storage arm.
        alpha: weight of the retain loss.
        beta: inverse temperature of NPO.
        batch, retain_batch: documents of one step.
        optimizer: rule of a step: "adamw"; "adamw-clamped", no step of which is larger than lr; "sgd", without momentum; "sign", by lr along the sign of the gradient. A
            configuration of the default does not name it.
        autocast: dtype of the fp32 arm's losses: "bf16" computes them as mixed-precision training does.
        stop_forget_loss: threshold of the fixed rule: stop at the first check where the mean loss of the forget
            passages is at least this, in nats per token. Where weights are kept on the way it says nothing.
        check_every: steps between two checks.
        max_steps: number of steps after which each storage arm stops in any case.
        depths: mean losses of the forget passages, nats per token, at which weights are kept on the way; "retrained" is that of the
            retrained model. Each gives a state of its own, which is measured as a model, and an arm ends with the last of them. A
            method that keeps none on the way ends by `stop_forget_loss`, and its last state is measured.
        at_steps: numbers of steps after which weights are kept, too.
        keep: which of the two checks around a depth is kept: "nearest", the nearer in loss of two neighbouring steps; "last", the
            first check at or above it, of one every `check_every` steps.
    """

    methods: dict[str, Any]
    lr: dict[Storage, Annotated[float, Field(gt=0)]]
    max_steps: dict[Storage, Annotated[int, Field(ge=1)]]
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=0.1, gt=0)
    batch: int = Field(default=8, ge=1)
    retain_batch: int = Field(default=8, ge=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    stop_forget_loss: float = Field(gt=0)
    check_every: int = Field(default=10, ge=1)
    optimizer: Optimizer = "adamw"
    autocast: Autocast = "none"
    depths: tuple[Depth, ...] = ()
    at_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    keep: Keep = "nearest"

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave defaults out that older configurations do not have: their text, and its hash, stay what they were."""
        return without(handler(self), optimizer="adamw", depths=(), at_steps=(), keep="nearest")

    @field_validator("depths", mode="before")
    @classmethod
    def _losses(cls, wanted: Any) -> Any:
        for depth in wanted if isinstance(wanted, list | tuple) else ():
            number = isinstance(depth, int | float) and not isinstance(depth, bool) and 0 < depth < math.inf
            if not number and depth != RETRAINED:
                raise ValueError(f"depths must be losses above 0 or {RETRAINED}, got {depth!r}")
        return wanted

    @field_validator("depths", "at_steps")
    @classmethod
    def _once(cls, wanted: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"{info.field_name} must hold each value once, got {', '.join(map(str, wanted))}")
        return wanted

    @field_validator("methods", mode="before")
    @classmethod
    def _of_their_types(cls, methods: Any) -> Any:
        """Read what each method sets as the settings that it declares."""
        if not isinstance(methods, dict):
            return methods  # refused by its type
        read: dict[str, Any] = {}
        for name, given in methods.items():
            if name != label_of(name) and (label_of(name) in METHODS or label_of(name) in map(label_of, read)):
                raise ValueError(f"a method of one's own must have a name of its own, got method={name!r}")
            kinds: Any = GenericAlias(dict, (str, method_named(name).settings))
            read |= TypeAdapter(kinds).validate_python({name: given})
        return read


class EvaluationConfig(Section):
    """How M1-M4 are measured.

    Attributes:
        batch: prompts generated together.
        shots: question-answer pairs before each question of M2 and M4.
        answer_tokens: longest answer.
        answer_cue: text between a question and its answer. MUSE's prompt ends in a space, "Answer: ", and so does a
            run's on MUSE by default; a byte-level vocabulary never sees a space there, and "Answer:" is the same prompt to it.
        min_k: share of least likely tokens in Min-K %.
        questions: largest number asked of each question set; None for all.
        metrics: metrics that are measured on demand, beside those that always are; `unforgotten metrics` lists both. A reference
            stands for one's own.
        harness: how lm-evaluation-harness is asked.
        leak: settings of leak@k. A configuration of the defaults names neither.
    """

    batch: int = Field(default=64, ge=1)
    shots: int = Field(default=4, ge=0)
    answer_tokens: int = Field(default=16, ge=1)
    answer_cue: str = "Answer:"
    min_k: float = Field(default=0.4, gt=0, le=1)
    questions: int | None = Field(default=None, ge=1)
    metrics: tuple[str, ...] = ()
    harness: HarnessConfig = HarnessConfig()
    leak: LeakConfig = LeakConfig()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave defaults out that older configurations do not have."""
        return without(handler(self), harness=HarnessConfig().model_dump(), leak=LeakConfig().model_dump())

    @model_validator(mode="after")
    def _enough_samples(self) -> EvaluationConfig:
        check_samples(self.metrics, self.leak.samples)
        return self

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for i, name in enumerate(names):
            label = metric_named(name).name
            if (is_own(name) and label in METRICS) or label in map(label_of, names[:i]):
                raise ValueError(f"a metric must have a name that no other has, got metric={name!r}")
        return names


class CalibrationConfig(Section):
    """The text that quantizers are calibrated on, whatever text a format's name asks for.

    Attributes:
        documents: largest number of documents, the first of each text; each is cut as those that train are.
    """

    documents: int = Field(default=128, ge=1)


class StandInConfig(Section):
    """What the model of a run stands in for.

    Attributes:
        real: directory of a real model, which is read once; None for a Llama-2-7B as it is assumed to be.
    """

    real: Path | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(handler(self), real=None)


class Measuring(Protocol):
    """What M1-M4 need of a configuration."""

    @property
    def seed(self) -> int:
        """Seed of the bootstrap of M3."""
        ...

    @property
    def corpus(self) -> CorpusConfig:
        """Lengths of passages and of what M1 continues."""
        ...

    @property
    def evaluation(self) -> EvaluationConfig:
        """Everything else."""
        ...


class RunConfig(Section):
    """A whole run. `only_methods` cuts it to some of the methods and keeps their settings.

    `bf16_products` says how bfloat16 matrices are multiplied in training: "native" by torch's own kernels, "float32" in
    float32 and rounded, "auto" natively where the processor has instructions for it. The rows say which it was.
    A configuration whose `compute` or `stand_in` is the default does not name it.
    """

    profile: str
    only_methods: tuple[str, ...] | None = None
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=2, ge=1)
    bf16_products: Bf16Products = "auto"
    corpus: CorpusConfig
    base: BaseConfig
    models: GivenModels = GivenModels()
    pretraining: TrainingConfig | None = None
    finetuning: TrainingConfig
    unlearning: UnlearningConfig
    storages: tuple[Storage, ...] = ("fp32", "bf16")
    formats: tuple[str, ...]
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    stand_in: StandInConfig = StandInConfig()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the sections out that older configurations do not have, where they say nothing."""
        return without(handler(self), compute={}, stand_in={})

    @model_validator(mode="before")
    @classmethod
    def _as_its_corpus(cls, tree: Any) -> Any:
        """Fill what a profile of a run on MUSE or TOFU leaves open with that data set's own settings."""
        corpus = tree.get("corpus") if isinstance(tree, dict) else None
        if not isinstance(corpus, dict) or corpus.get("kind", "fiction") not in CORPORA:
            return tree
        theirs = CORPORA[corpus.get("kind", "fiction")].settings
        sections = {name: tree.get(name, {}) for name in theirs}
        return {**tree, **{k: {**theirs[k], **own} for k, own in sections.items() if isinstance(own, dict)}}

    @field_validator("formats")
    @classmethod
    def _readable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            ours_of(name)
        return names

    @model_validator(mode="after")
    def _cut(self) -> RunConfig:
        for name in self.only_methods or ():
            if name not in self.unlearning.methods:
                known = ", ".join(self.unlearning.methods)
                raise ValueError(f"only_methods must be of {known}, got method={name!r}")
        return self

    @model_validator(mode="after")
    def _pair(self) -> RunConfig:
        sizes = self.unlearning.batch, self.unlearning.retain_batch
        if self.corpus.pairing == "fixed" and sizes[0] != sizes[1]:
            raise ValueError(f"corpus.pairing fixed needs unlearning.retain_batch={sizes[0]} as batch, got {sizes[1]}")
        return self

    @model_validator(mode="after")
    def _have_settings(self) -> RunConfig:
        settings = self.unlearning
        for name, given in (("lr", settings.lr), ("max_steps", settings.max_steps)):
            for storage in self.storages:
                if storage not in given:
                    raise ValueError(
                        f"storages must be of those in unlearning.{name} ({', '.join(given)}), got {storage!r}"
                    )
        return self

    @model_validator(mode="after")
    def _keep_states(self) -> RunConfig:
        settings = self.unlearning
        if not settings.depths and not settings.at_steps:
            return self
        if "retrained" in settings.depths and self.models.target is not None and self.models.retrained is None:
            raise ValueError("unlearning.depths retrained needs models.retrained beside models.target, got none")
        for name in self.methods:
            own = getattr(settings.methods[name], "stop_forget_loss", None)
            if own is not None and keeps_states(method_named(name)):
                raise ValueError(
                    f"stop_forget_loss must not stand beside unlearning.depths or at_steps, got it of {name!r}"
                )
        return self

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to run: those of `only_methods`, or all, in the order of `unlearning.methods`."""
        chosen = self.only_methods
        return tuple(m for m in self.unlearning.methods if chosen is None or m in chosen)

    @property
    def own(self) -> tuple[str, ...]:
        """References to what is somebody's own: methods, metrics, the base model."""
        methods = dict.fromkeys(map(without_variant, self.methods))
        return tuple(filter(is_own, (*methods, *self.evaluation.metrics, self.base.kind)))

    @property
    def hash(self) -> str:
        """First 12 digits of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
