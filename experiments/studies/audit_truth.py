"""How often the verdict is right: pairs of known truth, where the truth is not made of numbers that the verdict reads.

halves: pairs of published runs. Behaviour sees every other passage with its questions; the truth is rho on the passages
    that it did not see. Each half is both in turn.
whole: the same pairs, behaviour on all passages. The truth is rho on the openings of the passages, tokens that M1, which
    continues their first part, never scores.
output: the same pairs, the output leg alone, on the passages as texts. The truth is rho on the openings: greedy answers,
    where the leg reads likelihoods.
held out: pairs of runs that nobody had looked at when the rule was final, behaviour on all passages and formats; the truth
    is that of "whole".
one format, one format by texts: the same pairs, as audits of a single format, by behaviour and by the output leg alone.
constructed: pairs whose truth follows from their weights (`pairs.audit_truth_models`), all legs measured.

Settings: `published` runs, of which no model is needed, for the first three sets; `held_out` runs; and `models`, folders of runs with their
models, of which the constructed pairs are made, and the readings that "whole" and "output" take their truth from. Rows and
readings of runs that are not in `models` stay as they were measured.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unforgotten.audit.progress.stages import Progress
from unforgotten.audit.verdict.evidence import MATERIAL, mean_of
from unforgotten.audit.verdict.legs import DECIDES_BEHAVIOUR, BehaviourLeg, OutputFormat, OutputLeg, RecoveryRow
from unforgotten.audit.verdict.rule import TAKEN, decide
from unforgotten.experiments.legs.behaviour import RECOVERED, leg_of
from unforgotten.experiments.legs.likelihood import LIKELIHOODS
from unforgotten.experiments.metrics.effects import recovery
from unforgotten.experiments.metrics.items import of_items
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.audit_truth_rates import TRIALS, rates
from unforgotten.experiments.studies.study import Study
from unforgotten.records.depths import kept_depths, state_name
from unforgotten.records.files import read_json_lines, write_json_lines
from unforgotten.records.items import read_items
from unforgotten.records.rows import Subject
from unforgotten.records.store import Measurement

LOOKED_AT = {"halves": "tiny-", "whole": "tiny-seed1", "output": "tiny-seed1"}
"""What names of runs begin with whose rows shaped the rule, by set; a set that is not here has none."""
OPENING_TAKEN = 0.1  # unlearning takes less of an opening than of what follows
Runs = Mapping[str, Mapping[str, Measurement]]
Readings = dict[tuple[str, str], dict[str, dict[str, list[float]]]]  # (run, model), format, metric


class Truth(NamedTuple):
    """The largest rho over formats and metrics from which unlearning took enough; None where it took less.

    `clear`: the truth is itself beyond chance. "undone": some interval of a rho lies above MATERIAL; "survives": all lie
    below. `interval` is that of the largest.
    """

    rho: float | None = None
    interval: tuple[float, float] | None = None
    where: str | None = None
    clear: bool = False

    @property
    def word(self) -> str | None:
        """What the verdict should be."""
        if self.rho is None:
            return None
        return "undone" if self.rho >= MATERIAL else "survives"


def largest(rows: Sequence[tuple[str, RecoveryRow]], least: float) -> Truth:
    """Return the largest rho of (format, row) pairs as the truth, where unlearning took at least the share `least`."""
    found = [
        (row["rho"], (row["low"] or 0.0, row["high"] or 0.0), f"{row['metric']} in {name}")
        for name, row in rows
        if row["rho"] is not None and row["target"] - row["unlearned"] >= least * row["target"]
    ]
    if not found:
        return Truth()
    top = max(found)
    if top[0] >= MATERIAL:
        clear = any(low > MATERIAL for _, (low, _), _ in found)
    else:
        clear = all(high < MATERIAL for _, (_, high), _ in found)
    return Truth(*top, clear)


def behaviour_truth(leg: BehaviourLeg) -> Truth:
    """Return the largest rho of a behaviour leg, over the metrics that decide its verdict."""
    rows = [(f["format"], row) for f in leg["formats"] for row in f["recoveries"]]
    return largest([(n, row) for n, row in rows if row["metric"] in DECIDES_BEHAVIOUR], TAKEN)


class PublishedPair(NamedTuple):
    """One unlearned model of a run, with the target's and its own measurements by format."""

    run: str
    method: str
    storage: str
    base: Runs
    after: Runs
    depth: str | None = None
    architecture: str = "tiny-llama"

    def row(self, kind: str, truth: Truth, verdict: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Return one row of the table's source."""
        return {
            "set": kind,
            "run": self.run,
            "method": self.method,
            "storage": self.storage,
            **({} if self.depth is None else {"depth": self.depth}),
            **more,
            "looked_at": kind in LOOKED_AT and self.run.startswith(LOOKED_AT[kind]),
            "truth": truth.word,
            "clear": truth.clear,
            "rho": truth.rho,
            "interval": truth.interval,
            "where": truth.where,
            "verdict": verdict["overall"],
            "reasons": verdict["reasons"],
        }


def published_pairs(folder: Path) -> Iterator[PublishedPair]:
    """Yield target and unlearned model of every arm of a published run, at each depth that it kept, from its files of items."""
    config = json.loads((folder / "config.json").read_text())
    chosen = config.get("only_methods") or list(config["unlearning"]["methods"])
    formats = ("none", *config["formats"])
    base = {f: _measured(folder, Subject("target", format=f)) for f in formats}
    for method in chosen:
        for storage in config["storages"]:
            for depth in kept_depths(config["unlearning"]):
                subjects = {f: Subject("unlearned", method, storage, f, depth=depth) for f in formats}
                try:
                    read_items(folder, f"items/{subjects['none'].file_stem}.json")
                except ValueError:
                    if depth is None:
                        raise
                    continue  # a depth that this arm did not reach
                after = {f: _measured(folder, subject) for f, subject in subjects.items()}
                yield PublishedPair(folder.name, method, storage, base, after, depth, config["base"]["kind"])


def _measured(folder: Path, subject: Subject) -> dict[str, Measurement]:
    items = read_items(folder, f"items/{subject.file_stem}.json")
    return {metric: of_items(metric, items[metric]) for metric in RECOVERED}


def half(runs: Runs, fold: int) -> dict[str, dict[str, Measurement]]:
    """Return every other passage, from `fold` on, with its questions, which stand in the order of the passages."""
    return {
        name: {metric: of_items(metric, _of_fold(measured, metric, fold)) for metric in measured}
        for name, measured in runs.items()
    }


def _of_fold(measured: Mapping[str, Measurement], metric: str, fold: int) -> list[float]:
    items, passages = measured[metric].items or (), len(measured["M1"].items or ())
    each = len(items) // passages
    return [x for i, x in enumerate(items) if (i // each) % 2 == fold]


def halves(pair: PublishedPair) -> Iterator[dict[str, Any]]:
    """Yield the rows of both folds of a pair."""
    for fold in (0, 1):
        seen, kept = (leg_of(half(pair.base, f), half(pair.after, f), benchmark=pair.run) for f in (fold, 1 - fold))
        yield pair.row("halves", behaviour_truth(kept), decide("unclear", None, seen), fold=fold)


def against_openings(pair: PublishedPair, readings: Readings) -> Iterator[dict[str, Any]]:
    """Yield the rows of the sets "whole" and "output" for a pair whose models were read."""
    names = ("target", state_name(pair.method, pair.storage, pair.depth))
    models = [readings.get((pair.run, name)) for name in names]
    if models[0] is None or models[1] is None:
        return
    formats = [name for name in pair.after if name != "none"]
    four = {name: four_models(models[0], models[1], name) for name in formats}
    truth = largest([(name, recovery("opening", x)) for name, x in four.items()], OPENING_TAKEN)
    behaviour = leg_of(pair.base, pair.after, benchmark=pair.run)
    output = output_of(four, pair.run)
    yield pair.row("whole", truth, decide("unclear", None, behaviour))
    yield pair.row("output", truth, decide("unclear", output, None))


def held_out(pair: PublishedPair, readings: Readings) -> Iterator[dict[str, Any]]:
    """Yield the rows of the held-out sets for a pair: one of all formats, and two of each.

    Raises:
        ValueError: a model of the pair was not read.
    """
    names = ("target", state_name(pair.method, pair.storage, pair.depth))
    for name in names:
        if (pair.run, name) not in readings:
            raise ValueError(f"{pair.run}: {name} must have readings; measure it, with its run among models")
    target, unlearned = (readings[pair.run, name] for name in names)
    four = {name: four_models(target, unlearned, name) for name in pair.after if name != "none"}
    kept = {"architecture": pair.architecture}
    for together in [list(four), *([name] for name in four)]:
        truth = largest([(name, recovery("opening", four[name])) for name in together], OPENING_TAKEN)
        after = {name: pair.after[name] for name in ("none", *together)}
        verdict = decide("unclear", None, leg_of(pair.base, after, benchmark=pair.run))
        if len(together) > 1:
            yield pair.row("held out", truth, verdict, **kept)
            continue
        texts = decide("unclear", output_of({name: four[name] for name in together}, pair.run), None)
        yield pair.row("one format", truth, verdict, format=together[0], **kept)
        yield pair.row("one format by texts", truth, texts, format=together[0], **kept)


def four_models(
    target: Mapping[str, Any], unlearned: Mapping[str, Any], format_name: str
) -> dict[str, Mapping[str, list[float]]]:
    """Return the items of the four models, by model."""
    return {
        "target": target["none"],
        "unlearned": unlearned["none"],
        "Q(target)": target[format_name],
        "Q(unlearned)": unlearned[format_name],
    }


def output_of(four: Mapping[str, Mapping[str, Mapping[str, list[float]]]], name: str) -> OutputLeg:
    """Build an output leg with what the verdict reads, from items by format and model; all else is empty."""
    first = next(iter(four.values()))
    formats = [
        OutputFormat(
            format=key,
            losses={m: mean_of(items[m]["loss"]) for m in ("Q(target)", "Q(unlearned)")},
            distances=[],
            recoveries=[recovery(metric, items) for metric in LIKELIHOODS],
            effects=[],
        )
        for key, items in four.items()
    ]
    losses = {m: mean_of(first[m]["loss"]) for m in ("target", "unlearned")}
    return OutputLeg(
        texts=name,
        count=len(first["target"]["loss"]),
        tokens=0,
        cut=0,
        losses=losses,
        distances=[],
        formats=formats,
        notes=[],
    )


def read_readings(path: Path) -> Readings:
    """Read a file of readings: the items of every model of every run, by format."""
    found: Readings = defaultdict(dict)
    for row in read_json_lines(path):
        found[row["run"], row["model"]][row["format"]] = row["items"]
    return dict(found)


def truth_rows(runs: Sequence[Path], readings: Readings) -> Iterator[dict[str, Any]]:
    """Yield the rows of the sets that need no model."""
    for folder in runs:
        for pair in published_pairs(folder):
            yield from halves(pair)
            yield from against_openings(pair, readings)


class TruthSettings(Section):
    """What verdicts are compared with what.

    Attributes:
        published: folders of published runs, with rows and items.
        held_out: likewise, of runs that nobody had looked at when the rule was final.
        models: folders of runs with their models, which are measured now.
        trials: simulated legs of each case of `rates.jsonl`.
    """

    published: tuple[Path, ...]
    held_out: tuple[Path, ...] = ()
    models: tuple[Path, ...] = ()
    trials: int = TRIALS


def _measure(settings: TruthSettings, folder: Path, progress: Progress) -> None:
    rows, read = folder / "rows.jsonl", folder / "readings.jsonl"
    constructed = [row for row in _lines(rows) if row["set"] == "constructed"]
    for run in settings.models:
        from unforgotten.experiments.studies.audit_truth_constructed import constructed_rows, readings

        with progress.stage(f"audit constructed pairs of {run.name}"):
            constructed = [*(row for row in constructed if row["run"] != run.name), *constructed_rows(run)]
        with progress.stage(f"read the models of {run.name}"):
            write_json_lines(read, [*(row for row in _lines(read) if row["run"] != run.name), *readings(run)])
        write_json_lines(rows, constructed)
    with progress.stage("compare verdicts with the truth"):
        found = read_readings(read)
        fresh = (row for run in settings.held_out for pair in published_pairs(run) for row in held_out(pair, found))
        write_json_lines(rows, [*constructed, *truth_rows(settings.published, found), *fresh])
    with progress.stage("simulate items"):
        write_json_lines(folder / "rates.jsonl", rates(settings.trials))


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path) if path.exists() else []


STUDY = Study(TruthSettings, lambda settings: 2 * len(settings.models) + 2, _measure)
