"""What unlearning and its evaluation cost here, beside the loop of released code: one NPO_KLR, then M1-M4, side by side.

Every round times both in turn, in one process, from the same target and the same batches, and gives ratios. What they find is
compared as well: a row holds the largest difference of any item.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from unforgotten.audit.progress.stages import SILENT, Progress
from unforgotten.experiments.arms.arm import Arm
from unforgotten.experiments.arms.processor import processor
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.methods.method import Task
from unforgotten.experiments.methods.reference import make_reference
from unforgotten.experiments.methods.registry import method_named
from unforgotten.experiments.methods.settings import settings_of
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.metrics.probes import Probes, make_probes
from unforgotten.experiments.models.batches import shuffled_batches
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.prepared_models import prepare_models
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies import plain_loop
from unforgotten.experiments.studies.study import Study
from unforgotten.records.files import write_json_lines

ARM = Arm("NPO_KLR", "fp32")
ITEMS = ("M1", "M2", "M4", "forget_loss", "retain_loss", "auc")
NEVER = 1e9


class LoopCostSettings(Section):
    """What is timed.

    Attributes:
        profile: profile that says how, by name or as a YAML file; its target is trained first, which is not timed.
        set: settings in place of the profile's, by dotted name.
        steps: steps of unlearning.
        rounds: rounds, in each of which both loops are timed.
    """

    profile: str = "tiny"
    set: dict[str, Any] = Field(default_factory=dict)
    steps: int = Field(default=60, ge=1)
    rounds: int = Field(default=3, ge=1)


@dataclass(frozen=True)
class Prepared:
    """A target with its texts, and the configuration of the arm that is timed."""

    config: RunConfig
    target: Path
    probes: Probes
    tokenizer: Any


@dataclass(frozen=True)
class Timed:
    """Seconds of both parts, and the items that were found."""

    unlearn: float
    evaluate: float
    items: Mapping[str, list[float]]


def prepare(settings: LoopCostSettings, folder: Path) -> Prepared:
    """Train the target of a profile in a folder."""
    limits = {"unlearning.stop_forget_loss": NEVER, "unlearning.check_every": settings.steps}
    steps = {"unlearning.max_steps": {"fp32": settings.steps}, "storages": ["fp32"]}
    config = load_config(settings.profile, settings=limits | steps | settings.set, methods=[ARM.method])
    torch.set_num_threads(config.threads)
    corpus, _ = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    prepare_models(config, corpus, folder / "models", SILENT)
    tokenizer = load_tokenizer(folder / "models/target")
    return Prepared(config, folder / "models/target", make_probes(corpus, tokenizer, config), tokenizer)


def time_ours(prepared: Prepared) -> Timed:
    """Unlearn and measure as a run does."""
    config, probes = prepared.config, prepared.probes
    model, task = load_model(prepared.target), _task(prepared)
    start = time.perf_counter()
    method_named(ARM.method).unlearn(model, task, config.unlearning.methods[ARM.method])
    middle = time.perf_counter()
    measured = Meter(Shell(model, prepared.tokenizer), probes, config).measure(state_of(model), ITEMS)
    end = time.perf_counter()
    return Timed(middle - start, end - middle, {name: list(measured[name].items or ()) for name in ITEMS})


def time_plain(prepared: Prepared) -> Timed:
    """Unlearn and measure as released code does, with the same batches."""
    config, probes = prepared.config, prepared.probes
    model, task = load_model(prepared.target), _task(prepared)
    settings = settings_of(task, config.unlearning.methods[ARM.method])
    pad_id = model.config.pad_token_id or 0
    forget = shuffled_batches(task.forget, settings.batch, pad_id, task.seed)
    retain = shuffled_batches(task.retain, settings.retain_batch, pad_id, task.seed + 1)
    start = time.perf_counter()
    plain_loop.unlearn(model, forget, retain, settings)
    middle = time.perf_counter()
    asked = config.evaluation
    items = plain_loop.evaluate(model, prepared.tokenizer, probes, answer_tokens=asked.answer_tokens, share=asked.min_k)
    return Timed(middle - start, time.perf_counter() - middle, items)


def _task(prepared: Prepared) -> Task:
    config, probes = prepared.config, prepared.probes
    arithmetic, texts = ARM.arithmetic(config), (probes.forget, probes.retain)
    return Task(
        forget=probes.forget,
        retain=probes.retain,
        watched=probes.passages,
        common=config.unlearning,
        storage=ARM.storage,
        arithmetic=arithmetic,
        reference=lambda model: make_reference(model, texts, config.evaluation.batch, arithmetic),
        seed=config.seed + 2,
        progress=lambda step, steps, said: None,
        tokenizer=prepared.tokenizer,
    )


def difference(ours: Timed, plain: Timed, metric: str) -> float:
    """Return the largest difference of an item of a metric."""
    pairs = zip(ours.items[metric], plain.items[metric], strict=True)
    return max(abs(a - b) for a, b in pairs)


def _measure(settings: LoopCostSettings, folder: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory() as place:
        with progress.stage("train the target"):
            prepared = prepare(settings, Path(place))
        rounds: list[tuple[Timed, Timed]] = []
        for i in range(settings.rounds):
            with progress.stage(f"round {i + 1}"):
                rounds.append((time_ours(prepared), time_plain(prepared)))
    common = {
        "profile": settings.profile,
        "set": settings.set,
        "steps": settings.steps,
        "prompts": sum(len(rounds[0][0].items[name]) for name in ("M1", "M2", "M4")),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }
    seconds: Mapping[str, Callable[[Timed], float]] = {
        "unlearn": lambda timed: timed.unlearn,
        "evaluate": lambda timed: timed.evaluate,
        "both": lambda timed: timed.unlearn + timed.evaluate,
    }
    rows: list[dict[str, Any]] = [
        {"of": part, "ratios": sorted(of(plain) / of(ours) for ours, plain in rounds)} for part, of in seconds.items()
    ]
    rows += [
        {"of": name, "mean": sum(ours.items[name]) / len(ours.items[name]), "difference": difference(ours, plain, name)}
        for ours, plain in rounds[:1]
        for name in ITEMS
    ]
    write_json_lines(folder / "rows.jsonl", (row | common for row in rows))


STUDY = Study(LoopCostSettings, lambda settings: settings.rounds + 1, _measure)
