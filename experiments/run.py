"""The whole loop, read top to bottom: corpus, models, unlearning, quantization, evaluation, decomposition.

Every stage is a function of the configuration, the seed and files that earlier stages wrote, and ends with an atomic
write. A run that was killed goes on with the first stage that is not finished, and ends with the same rows.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from unforgotten.audit.progress.stages import SILENT, Progress
from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.weights.leg import Setting, weights_leg
from unforgotten.experiments.arms.arithmetic import Arithmetic
from unforgotten.experiments.arms.arm import TRAINED, Arm, arms
from unforgotten.experiments.arms.processor import processor
from unforgotten.experiments.arms.products import resolve
from unforgotten.experiments.config import RunConfig, TrainingConfig
from unforgotten.experiments.data.corpus import Corpus, prepare_corpus
from unforgotten.experiments.evaluation import (
    Bench,
    Items,
    decompose,
    evaluate,
    membership_scores,
    state_of,
    weights_rows,
)
from unforgotten.experiments.methods.descent import (
    Reference,
    Settings,
    arithmetic_of,
    make_reference,
    settings_of,
    unlearn,
)
from unforgotten.experiments.metrics.registry import make_probes
from unforgotten.experiments.models.base import load_smollm2, tiny_llama, train_tokenizer
from unforgotten.experiments.models.batches import encode_documents
from unforgotten.experiments.models.saved import load_model, load_notes, load_tokenizer, save_model
from unforgotten.experiments.models.training import train
from unforgotten.records.files import write_json, write_text
from unforgotten.records.store import Measurement, RowStore, Subject
from unforgotten.theory.laws.update import GRID_MODES


def stages(config: RunConfig) -> list[str]:
    """Every stage of a run, in order."""
    trained = ["base", "target", "retrained"]
    names = [f"train {name}" for name in trained]
    names += [f"evaluate {m} {f}" for m in ("retrained", "target") for f in ("none", *config.formats)]
    names.append("evaluate base none")
    for arm in arms(config):
        names += [f"unlearn {arm.name}", *_measurements_of(config, arm)]
    return names


def _measurements_of(config: RunConfig, arm: Arm) -> list[str]:
    """Return the stages of an arm that come after its unlearning, in order."""
    evaluated = [f"evaluate {arm.name} {f}" for f in ("none", *config.formats)]
    return evaluated + [f"decompose {arm.name} {f}" for f in config.formats]


def revision() -> str:
    """Version and a hash of the sources that compute rows."""
    digest = hashlib.sha256()
    for package in ("theory", "records", "audit", "experiments"):
        root = Path(str(files(f"unforgotten.{package}")))
        for path in sorted(root.rglob("*.py")) + sorted(root.rglob("*.yaml")):
            digest.update(path.read_bytes())
    return f"{version('unforgotten')}+src.{digest.hexdigest()[:12]}"


def run(config: RunConfig, folder: Path, *, resume: bool, progress: Progress = SILENT) -> Path:
    """Do everything that is not done yet; returns the path of the rows.

    Raises:
        ValueError: the folder holds a run and `resume` is False, or it holds the run of another configuration.
    """
    _claim_folder(config, folder, resume)
    torch.set_num_threads(config.threads)
    corpus, origin = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    common = {
        "profile": config.profile,
        "seed": config.seed,
        "config": config.hash,
        "revision": revision(),
        "corpus": origin,
        "device": "cpu",
        "processor": processor(),
    }
    store = RowStore(folder, common)
    models = folder / "models"
    _train_models(config, corpus, models, progress)
    bench = _make_bench(config, corpus, models)
    scores = _evaluate_trained(bench, models, store, progress)
    references: dict[Arithmetic, Reference] = {}
    ahead = [arithmetic_of(_settings(config, arm), arm.storage) for arm in arms(config)]
    for arm in arms(config):
        _unlearn_arm(bench, arm, models, references, progress)
        _evaluate_arm(bench, arm, models, store, scores, progress)
        del ahead[0]
        references = {a: r for a, r in references.items() if a in ahead}
    return store.rows_path


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
    write_text(path, config.model_dump_json(indent=1))


def _train_models(config: RunConfig, corpus: Corpus, models: Path, progress: Progress) -> None:
    """Train and save base, target (forget + retain) and retrained (retain only), unless they are saved already."""
    if (models / "base").exists():
        progress.skip()
    else:
        model, tokenizer = _train_base(config, corpus, progress)
        save_model(models / "base", model, tokenizer, torch.float32, _base_notes(config))
    tokenizer = load_tokenizer(models / "base")
    everything = corpus.forget + corpus.forget_rest + corpus.retain
    for name, texts in (("target", everything), ("retrained", corpus.retain)):
        if (models / name).exists():
            progress.skip()
            continue
        model = load_model(models / "base")
        documents = encode_documents(texts, tokenizer, config.corpus.passage_tokens)
        with progress.stage(f"train {name}") as step:
            train(
                model,
                documents,
                config.finetuning,
                seed=config.seed + 1,
                progress=step,
                products=resolve(config.bf16_products),
            )
        notes = _trained_notes(config, config.finetuning)
        save_model(models / name, model, tokenizer, torch.bfloat16, notes)


def _base_notes(config: RunConfig) -> dict[str, Any]:
    """How the base was trained; of one that came in a package this is not known."""
    dtypes = TRAINED | {"checkpoint": "float32"}
    if config.base.kind == "smollm2" or config.pretraining is None:
        return {"dtypes": dtypes, "products": None, "rounding": None}
    return _trained_notes(config, config.pretraining) | {"dtypes": dtypes}


def _trained_notes(config: RunConfig, training: TrainingConfig) -> dict[str, Any]:
    """How a model was trained: dtypes, products, rounding."""
    arithmetic = Arithmetic(torch.float32, training.autocast, resolve(config.bf16_products))
    return {"dtypes": TRAINED, "products": arithmetic.products_name, "rounding": "nearest"}


def _train_base(config: RunConfig, corpus: Corpus, progress: Progress) -> tuple[PreTrainedModel, Any]:
    with progress.stage("train base") as step:
        if config.base.kind == "smollm2":
            return load_smollm2()
        if config.pretraining is None:
            raise ValueError("pretraining must be given for base.kind tiny-llama, got none")
        if not corpus.general:
            raise ValueError("corpus.kind must be fiction for base.kind tiny-llama, got muse")
        tokenizer = train_tokenizer(corpus.general, config.base.vocabulary)
        model = tiny_llama(config.base, config.seed)
        documents = encode_documents(corpus.general, tokenizer, config.corpus.passage_tokens)
        train(
            model,
            documents,
            config.pretraining,
            seed=config.seed,
            progress=step,
            products=resolve(config.bf16_products),
        )
    return model, tokenizer


def _make_bench(config: RunConfig, corpus: Corpus, models: Path) -> Bench:
    tokenizer = load_tokenizer(models / "base")
    probes = make_probes(corpus, tokenizer, config)
    return Bench(load_model(models / "target"), tokenizer, probes, config)


def _evaluate_trained(bench: Bench, models: Path, store: RowStore, progress: Progress) -> list[float]:
    """Rows of retrained, target and base; returns the retrained model's scores for M3."""
    retrained = state_of(load_model(models / "retrained"))
    scores = membership_scores(bench, retrained)
    for name in ("retrained", "target", "base"):
        notes = load_notes(models / name)
        state = retrained if name == "retrained" else state_of(load_model(models / name))
        formats = ("none",) if name == "base" else ("none", *bench.config.formats)
        for format_name in formats:
            subject = Subject(name, format=format_name, **_recorded(notes))
            stage = f"evaluate {name} {format_name}"
            if store.done(stage):
                progress.skip()
                continue
            with progress.stage(stage):
                rows = evaluate(bench, bench.quantized(state, format_name), scores)
                store.append(stage, subject, rows)
    return scores


def _settings(config: RunConfig, arm: Arm) -> Settings:
    own = config.unlearning.methods[arm.method]
    return settings_of(config.unlearning, own, arm.storage, resolve(config.bf16_products))


def _unlearn_arm(
    bench: Bench, arm: Arm, models: Path, references: dict[Arithmetic, Reference], progress: Progress
) -> None:
    """Train and save one unlearned model. A reference is made on first need and kept for arms of its arithmetic."""
    if (models / arm.name).exists():
        progress.skip()
        return
    config, target = bench.config, load_model(models / "target")
    probes = bench.probes
    documents = (probes.forget, probes.retain)
    settings = _settings(config, arm)
    arithmetic = arithmetic_of(settings, arm.storage)
    if arithmetic not in references:
        references[arithmetic] = make_reference(target, documents, config.evaluation.batch, arithmetic)
    with progress.stage(f"unlearn {arm.title}") as step:
        outcome = unlearn(
            target,
            arm.method,
            settings,
            documents,
            references[arithmetic],
            watched=probes.passages,
            storage=arm.storage,
            seed=config.seed + 2,
            progress=step,
        )
    notes = {
        **vars(settings),
        **vars(outcome),
        "dtypes": arm.kept.dtypes,
        "products": arithmetic.products_name,
        "rounding": arm.kept.rounding,
    }
    save_model(models / arm.name, target, bench.tokenizer, arm.kept.dtype, notes)


def _evaluate_arm(
    bench: Bench, arm: Arm, models: Path, store: RowStore, scores: list[float], progress: Progress
) -> None:
    """Rows of one unlearned model: M1-M4 in every format, then the pair with the target."""
    own = _measurements_of(bench.config, arm)
    if all(store.done(s) for s in own):
        for _ in own:
            progress.skip()
        return
    target, unlearned = (state_of(load_model(models / n)) for n in ("target", arm.name))
    subjects = _arm_subjects(bench.config, arm, load_notes(models / arm.name))
    for format_name, subject in subjects.items():
        stage = f"evaluate {arm.name} {format_name}"
        if store.done(stage):
            progress.skip()
            continue
        with progress.stage(f"evaluate {arm.title} {format_name}"):
            state = bench.quantized(unlearned, format_name)
            store.append(stage, subject, evaluate(bench, state, scores))
    undone = [f for f in bench.config.formats if not store.done(f"decompose {arm.name} {f}")]
    weights: dict[str, list[Measurement]] = {}
    for format_name in bench.config.formats:
        stage = f"decompose {arm.name} {format_name}"
        if format_name not in undone:
            progress.skip()
            continue
        with progress.stage(f"decompose {arm.title} {format_name}"):
            weights = weights or _weights(models, arm, undone)
            known = _known_items(store, subjects, format_name)
            rows = decompose(bench, (target, unlearned), format_name, known)
            rows = [*weights[format_name], *rows]
            store.append(stage, subjects[format_name], rows, items_of="pair")


def _arm_subjects(config: RunConfig, arm: Arm, notes: dict[str, Any]) -> dict[str, Subject]:
    return {
        format_name: Subject(
            "unlearned",
            arm.method,
            arm.storage,
            format_name,
            lr=notes["lr"],
            alpha=notes["alpha"],
            beta=notes["beta"],
            steps=notes["steps"],
            stopped=notes["stopped"],
            **_recorded(notes),
        )
        for format_name in ("none", *config.formats)
    }


def _recorded(notes: dict[str, Any]) -> dict[str, Any]:
    """How a model was computed, as it was noted when it was: a run may go on on another processor."""
    return {name: notes[name] for name in ("dtypes", "products", "rounding")}


def _weights(models: Path, arm: Arm, formats: list[str]) -> dict[str, list[Measurement]]:
    """Measure an arm's weights leg by the audit's code on the saved files; a library's format counts as ours."""
    if not formats:
        return {}
    own = {name: name.rpartition(":")[2] for name in formats}
    pair = (open_checkpoint(models / "target"), open_checkpoint(models / arm.name))
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
    """`run.json`: where everything is."""
    summary = {
        "schema": "unforgotten.run/1",
        "rows": str(folder / "rows.jsonl"),
        "models": sorted(str(p) for p in (folder / "models").iterdir() if not p.name.startswith(".")),
        "report": str(report) if report else None,
    }
    write_json(folder / "run.json", summary)
    return summary
