"""The whole loop, read top to bottom: corpus, models, unlearning, quantization, evaluation, decomposition.

Every stage is a function of the configuration, the seed and files that earlier stages wrote, and ends with an atomic
write. A run that was killed goes on with the first stage that is not finished, and ends with the same rows.

    rows = run(load_config("tiny", seed=1), Path("runs/tiny-seed1"), resume=True)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from unforgotten.audit.progress.stages import SILENT, Progress
from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.weights.leg import Setting, weights_leg
from unforgotten.experiments.arms.arm import Arm, arms
from unforgotten.experiments.arms.processor import processor_of
from unforgotten.experiments.arms.states import ArmState, goals, is_done, kept, loss_of_retrained, planned, save
from unforgotten.experiments.compute.device import device_of
from unforgotten.experiments.compute.processes import processes
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.evaluation import decompose, weights_rows
from unforgotten.experiments.inputs import claim_inputs
from unforgotten.experiments.likeness import STAGE, likeness
from unforgotten.experiments.methods.method import Task
from unforgotten.experiments.methods.reference import References
from unforgotten.experiments.methods.registry import method_named
from unforgotten.experiments.metrics.effects import Items
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.metrics.probes import Probes, check_asked, make_probes
from unforgotten.experiments.models.batches import encode_documents
from unforgotten.experiments.models.quantized_states import FOLDER, QuantizedStates
from unforgotten.experiments.models.saved import load_model, load_notes, load_tokenizer
from unforgotten.experiments.models.saved_states import SavedStates, saved_states
from unforgotten.experiments.models.shell import Shell
from unforgotten.experiments.own import digests
from unforgotten.experiments.prepared_models import prepare_models, prepared_models, stage_of
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.experiments.quantizers.registry import ours_of, text_of
from unforgotten.records.files import write_json, write_text
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.records.rows import Subject
from unforgotten.records.store import Measurement, RowStore
from unforgotten.theory.laws.update import GRID_MODES

OWN = "own.json"
"""SHA-256 of the file of each method, metric and model of one's own, by its reference."""


def stages(config: RunConfig) -> list[str]:
    """Return every stage of a run, in order."""
    prepared = prepared_models(config)
    names = [*(stage_of(config, name) for name in prepared), STAGE]
    for name in reversed(prepared):
        names += [f"evaluate {name} {f}" for f in _evaluated_in(config, name)]
    for arm in arms(config):
        names.append(f"unlearn {arm.name}")
        names += [stage for state in planned(config, arm) for stage in _measurements_of(config, state)]
    return names


def _evaluated_in(config: RunConfig, name: str) -> tuple[str, ...]:
    """Return the formats in which a model that the run starts from is measured."""
    return ("none",) if name == "base" else ("none", *config.formats)


def _measurements_of(config: RunConfig, state: ArmState) -> list[str]:
    """Return the stages of a state of an arm that come after its unlearning, in order."""
    evaluated = [f"evaluate {state.name} {f}" for f in ("none", *config.formats)]
    return evaluated + [f"decompose {state.name} {f}" for f in config.formats]


def revision(own: Mapping[str, str] | None = None) -> str:
    """Return the version and a hash of the sources that compute rows; `own` has those of what is one's own."""
    digest = hashlib.sha256()
    for package in ("theory", "records", "audit", "experiments"):
        root = Path(str(files(f"unforgotten.{package}")))
        for path in sorted(root.rglob("*.py")) + sorted(root.rglob("*.yaml")):
            digest.update(path.read_bytes())
    for reference, content in sorted((own or {}).items()):
        digest.update(f"{reference} {content}".encode())
    return f"{version('unforgotten')}+src.{digest.hexdigest()[:12]}"


def run(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    progress: Progress = SILENT,
    only: Sequence[Arm] | None = None,
    part: str | None = None,
) -> Path:
    """Do everything that is not done yet; return the path of the rows.

    The processes of one launch train and unlearn together; the first alone measures and writes. `only` cuts the arms to
    some of them, and with `part` the rows go to that folder below the run's: `fan_out.py` shares a run out so.

    Raises:
        ValueError: the folder holds a run and `resume` is False, or it holds the run of another configuration, or one that
            began with other files.
    """
    together, device = processes(), device_of(config.compute)
    together.agreed(lambda: _claim_folder(config, folder, resume))
    torch.set_num_threads(config.threads)
    corpus, origin = together.agreed(lambda: claim_inputs(config, folder))
    check_asked(corpus, config)
    if not corpus.general and any(text_of(name) == "generic" for name in config.formats):
        raise ValueError(
            f"formats must be calibrated on retain or forget where a corpus has no generic text, got {origin}"
        )
    common = {
        "profile": config.profile,
        "seed": config.seed,
        "config": config.hash,
        "revision": revision(digests(config.own)),
        "corpus": origin,
        "device": str(device),
        "processor": processor_of(device),
        "evaluation_dtype": config.compute.evaluation_dtype,
    }
    models = folder / "models"
    prepare_models(config, corpus, models, progress)
    tokenizer = load_tokenizer(models / "target")
    probes = make_probes(corpus, tokenizer, config)
    bench = None
    if together.first:
        store = RowStore(folder, common | {"rouge": probes.rouge_tokenizer}, part)
        bench = _evaluate_trained(config, _bench(config, corpus, probes, tokenizer, models, store), progress)
    references = References(probes.forget, probes.retain, config.evaluation.batch)
    asked = arms(config) if only is None else list(only)
    for done, arm in enumerate(asked, 1):
        _unlearn_arm(config, (probes, tokenizer), arm, folder, references, progress)
        if bench is not None:
            _evaluate_states(config, bench, arm, folder, progress)
        references.keep({ahead.arithmetic(config) for ahead in asked[done:]})
    if bench is not None and only is None:
        bench.quantized.forget()
    return folder / ROWS_FILE


def _claim_folder(config: RunConfig, folder: Path, resume: bool) -> None:
    path = folder / "config.json"
    if path.exists():
        if not resume:
            raise ValueError(f"{folder}: must be empty, got a run; add --resume or choose another --out")
        if path.read_text() != config.model_dump_json(indent=1):
            raise ValueError(f"{path}: --resume needs the configuration of the run, got another one")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: must be empty or hold a run, got other files")
    folder.mkdir(parents=True, exist_ok=True)
    _claim_own(digests(config.own), folder / OWN)
    write_text(path, config.model_dump_json(indent=1))


def _claim_own(own: dict[str, str], path: Path) -> None:
    """Note the files of what is one's own; refuse to go on with others."""
    before = json.loads(path.read_text()) if path.exists() else own
    for reference, content in own.items():
        if content != before.get(reference):
            raise ValueError(f"{path}: --resume needs the code of the run, got another file of {reference}")
    if own:
        write_json(path, own)


@dataclass(frozen=True)
class _Bench:
    """Where the models of a run are measured.

    Attributes:
        meter: meter of one model that takes the weights of all.
        states: weights of the models, read when they are asked for.
        quantized: the same as formats leave them.
        store: rows.
    """

    meter: Meter
    states: SavedStates
    quantized: QuantizedStates
    store: RowStore


def _bench(config: RunConfig, corpus: Corpus, probes: Probes, tokenizer: Any, models: Path, store: RowStore) -> _Bench:
    count = config.calibration.documents
    generic = encode_documents(corpus.general[:count], tokenizer, config.corpus.passage_tokens)
    retain, forget = ([list(row) for row in rows[:count]] for rows in (probes.retain, probes.forget))
    texts = {"generic": generic, "retain": retain, "forget": forget}
    states = saved_states(models, "target", config.compute)
    shell = Shell(states.model, tokenizer, texts)
    quantized = QuantizedStates(shell, models.parent / FOLDER, store.common["revision"])
    return _Bench(Meter(shell, probes, config), states, quantized, store)


def _evaluate_trained(config: RunConfig, bench: _Bench, progress: Progress) -> _Bench:
    """Write the rows of what the run starts from; return the bench that knows the retrained model's scores, for M3."""
    if bench.store.done(STAGE):
        progress.skip()
    else:
        with progress.stage(STAGE):
            bench.store.append_all(STAGE, likeness(config, bench.states, bench.meter.shell))
    for name in reversed(prepared_models(config)):
        notes, state = load_notes(bench.states.models / name), bench.states.of(name)
        if name == "retrained":
            bench = replace(bench, meter=bench.meter.against(state))
        for format_name in _evaluated_in(config, name):
            subject = Subject(name, format=format_name, **_recorded(notes, format_name))
            stage = f"evaluate {name} {format_name}"
            if bench.store.done(stage):
                progress.skip()
                continue
            with progress.stage(stage):
                bench.store.append(stage, subject, _measured(bench, name, state, format_name))
    return bench


def _measured(bench: _Bench, name: str, state: State, format_name: str) -> list[Measurement]:
    return list(bench.meter.measure(bench.quantized.of(name, state, format_name)).values())


def _unlearn_arm(
    config: RunConfig, probing: tuple[Probes, Any], arm: Arm, folder: Path, references: References, progress: Progress
) -> None:
    """Unlearn in one arm and save what it leaves; `probing` is the probes, and the tokenizer that encoded them."""
    together, (probes, tokenizer), models = processes(), probing, folder / "models"
    if together.agreed(lambda: is_done(config, arm, folder)):
        progress.skip()
        return
    wanted = goals(config, arm, lambda: loss_of_retrained(config, models, probes.passages))
    model, arithmetic = load_model(models / "target"), arm.arithmetic(config)
    torch.nn.Module.to(model, device_of(config.compute))
    with progress.stage(f"unlearn {arm.title}") as step:
        task = Task(
            forget=probes.forget,
            retain=probes.retain,
            watched=probes.passages,
            common=config.unlearning,
            storage=arm.storage,
            arithmetic=arithmetic,
            reference=lambda target: references.of(target, arithmetic),
            seed=config.seed + 2,
            progress=step,
            paired=config.corpus.pairing == "fixed",
            tokenizer=tokenizer,
            compute=config.compute,
            goals=wanted,
        )
        outcome = method_named(arm.method).unlearn(model, task, config.unlearning.methods[arm.method])
    computed = {"dtypes": arm.kept.dtypes, "products": arithmetic.products_name, "rounding": arm.kept.rounding}
    together.agreed(lambda: save(config, arm, folder, (model, tokenizer), outcome, wanted, **computed))


def _evaluate_states(config: RunConfig, bench: _Bench, arm: Arm, folder: Path, progress: Progress) -> None:
    """Write the rows of what an arm left; skip as many states as it was to leave and did not."""
    found = kept(config, arm, folder)
    for state in found:
        _evaluate_state(config, bench, state, progress)
    for state in planned(config, arm)[len(found) :]:
        for _ in _measurements_of(config, state):
            progress.skip("of depths that were not reached")


def _evaluate_state(config: RunConfig, bench: _Bench, state: ArmState, progress: Progress) -> None:
    """Write the rows of one unlearned model: M1-M4 in every format, then the pair with the target."""
    meter, store, models = bench.meter, bench.store, bench.states.models
    own = _measurements_of(config, state)
    if all(store.done(s) for s in own):
        for _ in own:
            progress.skip()
        return
    target, unlearned = (bench.states.of(name) for name in ("target", state.name))
    subjects = _state_subjects(config, state, load_notes(models / state.name))
    for format_name, subject in subjects.items():
        stage = f"evaluate {state.name} {format_name}"
        if store.done(stage):
            progress.skip()
            continue
        with progress.stage(f"evaluate {state.title} {format_name}"):
            store.append(stage, subject, _measured(bench, state.name, unlearned, format_name))
    undone = [f for f in config.formats if not store.done(f"decompose {state.name} {f}")]
    weights: dict[str, list[Measurement]] = {}
    for format_name in config.formats:
        stage = f"decompose {state.name} {format_name}"
        if format_name not in undone:
            progress.skip()
            continue
        with progress.stage(f"decompose {state.title} {format_name}"):
            weights = weights or _weights(models, state.name, undone)
            known = _known_items(store, subjects, format_name)
            q_target = bench.quantized.of("target", target, format_name)
            q_unlearned = bench.quantized.of(state.name, unlearned, format_name)
            rows = decompose(meter, (target, unlearned, q_target, q_unlearned), format_name, known)
            rows = [*weights.get(format_name, []), *rows]
            store.append(stage, subjects[format_name], rows, items_of="pair")
    bench.quantized.forget(state.name)


def _state_subjects(config: RunConfig, state: ArmState, notes: dict[str, Any]) -> dict[str, Subject]:
    return {
        format_name: Subject(
            "unlearned",
            state.arm.label,
            state.arm.storage,
            format_name,
            lr=notes.get("lr"),
            alpha=notes.get("alpha"),
            beta=notes.get("beta"),
            steps=notes["steps"],
            stopped=notes["stopped"],
            depth=state.depth,
            updated_share=notes.get("updated_share"),
            mask_threshold=notes.get("mask_threshold"),
            **_recorded(notes, format_name),
        )
        for format_name in ("none", *config.formats)
    }


def _recorded(notes: dict[str, Any], format_name: str) -> dict[str, Any]:
    """Return how a model was computed, as it was noted when it was, and its format calibrated.

    A run may go on on another processor.
    """
    computed = {name: notes[name] for name in ("dtypes", "products", "rounding")}
    return computed | {"calibration": text_of(format_name)}


def _weights(models: Path, unlearned: str, formats: list[str]) -> dict[str, list[Measurement]]:
    """Measure a state's weights leg by the audit's code on the saved files, where a format of ours has the same values."""
    own = {name: ours for name in formats if (ours := ours_of(name)) is not None}
    if not own:
        return {}
    pair = (open_checkpoint(models / "target"), open_checkpoint(models / unlearned))
    totals = weights_leg(*pair, list(own.values())).totals
    return {
        name: [row for mode in GRID_MODES for row in weights_rows(totals[Setting(ours, mode)], mode)]
        for name, ours in own.items()
    }


def _known_items(store: RowStore, subjects: dict[str, Subject], format_name: str) -> dict[str, Items]:
    def of(subject: Subject) -> Items:
        return {k: tuple(v) for k, v in store.all_items(subject).items()}

    return {
        "target": of(Subject("target")),
        "Q(target)": of(Subject("target", format=format_name)),
        "unlearned": of(subjects["none"]),
        "Q(unlearned)": of(subjects[format_name]),
    }


def write_summary(folder: Path, report: Path | None) -> dict[str, Any]:
    """Write `run.json`, which says where everything is."""
    summary = {
        "schema": "unforgotten.run/1",
        "rows": str(folder / "rows.jsonl"),
        "models": sorted(str(p) for p in (folder / "models").iterdir() if not p.name.startswith(".")),
        "report": str(report) if report else None,
    }
    write_json(folder / "run.json", summary)
    return summary
