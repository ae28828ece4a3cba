"""The rows of a study that asks for runs: one run for each combination of levels, and each seed.

    runs:
      profile: tiny
      seeds: [0, 1]
      set: {only_methods: [NPO_GDR]}
      vary:
        storage: {fp32: {storages: [fp32]}, bf16: {storages: [bf16]}}
        lr: {low: {unlearning.lr.bf16: 1.0e-5}, high: {unlearning.lr.bf16: 5.0e-5}}
      show: [M1, M4]
      predicted:
        - {says: fp32 passes the update, metric: gain, storages: [fp32], low: 0.9, high: 1.1}

makes the runs fp32-low-seed0, fp32-low-seed1, fp32-high-seed0 and so on. Each goes to `work`, with its models, and is
resumed where it was cut; its rows, items and configuration then go to a folder of its name beside the study's. What is
predicted stands in the study's file before there are rows, and the table says of each whether it came true.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from unforgotten.audit.progress.stages import Progress
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.section import Section, without
from unforgotten.experiments.studies.study import Study
from unforgotten.records.items import publish_run

LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


class Prediction(Section):
    """What is expected of cells of the runs, before they are measured.

    Attributes:
        says: statement, for a reader.
        metric: metric of unlearned models that it speaks of.
        methods: names of methods, or patterns of the shell; all where there is none.
        storages, formats: likewise; "none" is the format of what is not quantized.
        low, high: range that every cell is expected in; None where it has no end.
    """

    says: str
    metric: str
    methods: tuple[str, ...] = ()
    storages: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _can_fail(self) -> Prediction:
        if self.low is None and self.high is None:
            raise ValueError(f"a prediction must have low or high, got neither: {self.says}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low must be at most high, got low={self.low} and high={self.high}: {self.says}")
        return self


class RunsSettings(Section):
    """The runs of a study.

    Attributes:
        profile: name of a profile, or a YAML file.
        seeds: seeds of each combination.
        seeds_of: seeds of the combinations that have a level, where they are others, by the name of the level.
        set: overrides of all runs, by dotted name.
        vary: factors; each has levels, and each level has overrides.
        show: metrics of the unlearned models that the table has a column for.
        work: folder for the runs with their models.
        predicted: what is expected, written before the rows.
    """

    profile: str
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    seeds_of: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    show: tuple[str, ...] = Field(default=("M1", "M4"), min_length=1)
    work: Path = Path("runs/studies")
    predicted: tuple[Prediction, ...] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave defaults out that older studies do not have."""
        return without(handler(self), predicted=(), seeds_of={})

    @model_validator(mode="after")
    def _levels_are_there(self) -> RunsSettings:
        known = {level for by_level in self.vary.values() for level in by_level}
        for level, seeds in self.seeds_of.items():
            if level not in known or not seeds:
                raise ValueError(f"seeds_of must have seeds of levels of vary, got {level}={list(seeds)}")
        return self

    @field_validator("vary")
    @classmethod
    def _can_be_folders(cls, vary: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for factor, levels in vary.items():
            for level in levels:
                if not LEVEL.fullmatch(level):
                    raise ValueError(f"a level must be letters, digits, '.', '+' and '-', got {factor}={level!r}")
        return vary


class PlannedRun(NamedTuple):
    """One run of a study: its folder's name and its configuration."""

    name: str
    config: RunConfig


def planned_runs(settings: RunsSettings) -> Iterator[PlannedRun]:
    """Yield every run, in the order of the factors, the seeds last."""
    for levels in itertools.product(*(by_level.items() for by_level in settings.vary.values())):
        replaced = dict(settings.set)
        seeds = settings.seeds
        for level, overrides in levels:
            replaced |= overrides
            seeds = settings.seeds_of.get(level, seeds)
        for seed in seeds:
            config = load_config(settings.profile, seed=seed, settings=replaced)
            yield PlannedRun("-".join([*(level for level, _ in levels), f"seed{seed}"]), config)


def _stages(settings: RunsSettings) -> int:
    from unforgotten.experiments.run import stages

    return sum(len(stages(config)) for _, config in planned_runs(settings))


def _measure(settings: RunsSettings, folder: Path, progress: Progress) -> None:
    from unforgotten.experiments.run import run, stages

    for name, config in list(planned_runs(settings)):
        if (folder / name).exists():
            _same(folder / name, config)
            for _ in stages(config):
                progress.skip()
            continue
        place = settings.work / folder.name / name
        run(config, place, resume=True, progress=progress)
        publish_run(place, folder / name)


def _same(folder: Path, config: RunConfig) -> None:
    if (folder / "config.json").read_text() != config.model_dump_json(indent=1):
        raise ValueError(f"{folder}: must hold the run that the study asks for, got another configuration")


STUDY = Study(RunsSettings, _stages, _measure)
