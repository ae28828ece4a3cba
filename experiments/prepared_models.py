"""What a run starts from: base, target and retrained model, each trained here or given.

The target learned everything, the retrained model all but what is to be forgotten. Of a target that is given no base is known,
and there is a retrained model only if that is given, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from unforgotten.audit.progress.stages import Progress
from unforgotten.experiments.arms.arithmetic import Arithmetic
from unforgotten.experiments.arms.arm import TRAINED, products_of
from unforgotten.experiments.compute.device import device_of
from unforgotten.experiments.compute.processes import processes
from unforgotten.experiments.config import GivenModels, RunConfig, TrainingConfig
from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.metrics.probes import encode_training
from unforgotten.experiments.models.bases.given import fetched, loaded
from unforgotten.experiments.models.bases.registry import base_named
from unforgotten.experiments.models.batches import Documents, encode_documents
from unforgotten.experiments.models.saved import load_model, load_tokenizer, save_model
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.models.states import fill
from unforgotten.experiments.models.training import train

UNKNOWN = {name: "unknown" for name in ("parameters", "master", "moments")}
"""Dtypes in which a model was trained that came trained."""
HUB = "hub:"


def prepared_models(config: RunConfig) -> tuple[str, ...]:
    """Return the models that a run starts from, in the order in which they are made."""
    if config.models.target is None:
        return ("base", "target", "retrained")
    return ("target",) if config.models.retrained is None else ("target", "retrained")


def stage_of(config: RunConfig, name: str) -> str:
    """Return the stage in which a model is made: it is trained, or loaded."""
    return f"train {name}" if _source(config, name) is None else f"load {name}"


def _source(config: RunConfig, name: str) -> str | None:
    return {"target": config.models.target, "retrained": config.models.retrained}.get(name)


def prepare_models(config: RunConfig, corpus: Corpus, models: Path, progress: Progress) -> None:
    """Train, or take over, and save what is not saved yet; the processes of one launch train together, and the first saves.

    Raises:
        ValueError: a model that is given cannot be loaded, or a base cannot be made.
    """
    together = processes()
    for name in prepared_models(config):
        if together.agreed((models / name).exists):
            progress.skip()
            continue
        with progress.stage(stage_of(config, name)) as step:
            source = _source(config, name)
            if source is None:
                save = _made(config, corpus, models, name, step)
            else:
                stored_in = _stored_in(config, name)
                save = partial(_take_over, source, models / name, config.models, stored_in, config.formats)
            together.agreed(save)


def _made(config: RunConfig, corpus: Corpus, models: Path, name: str, step: Any) -> Callable[[], None]:
    """Train a model; return the function that saves it."""
    if name == "base":
        model, tokenizer = _base(config, corpus, step)
        return partial(save_model, models / name, model, tokenizer, torch.float32, _base_notes(config))
    return _fine_tune(config, corpus, models, name, step)


def _take_over(source: str, folder: Path, given: GivenModels, stored_in: str | None, formats: Sequence[str]) -> None:
    """Save a model that is given, in the dtype of its own checkpoint, and its tokenizer or another."""
    place = _place(source)
    model, tokenizer = loaded(place, _place(given.tokenizer, weights=False) if given.tokenizer else None)
    Shell(model, None).check(formats)
    _store(model, stored_in)
    dtype = _stored_dtype(place)
    notes = {"dtypes": UNKNOWN | {"checkpoint": str(dtype).removeprefix("torch.")}, "products": None, "rounding": None}
    save_model(folder, model, tokenizer, dtype, {**notes, "source": source})


def _stored_in(config: RunConfig, name: str) -> str | None:
    return config.models.stored_in if name == "target" else None


def _store(model: PreTrainedModel, format_name: str | None) -> None:
    """Give a model the values that it has when it is read back from a format, in place."""
    if format_name is not None:
        fill(model, Shell(model, None).quantized(state_of(model), format_name))


def _place(source: str, *, weights: bool = True) -> Path:
    if not source.startswith(HUB):
        return Path(source)
    repo, _, revision = source.removeprefix(HUB).partition("@")
    return fetched(repo, revision or None, weights=weights)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the widest dtype among the matrices of a checkpoint."""
    from unforgotten.audit.sources.checkpoint import open_checkpoint

    found = {str(info.dtype) for info in open_checkpoint(folder).tensors.values() if len(info.shape) > 1}
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if not found <= kinds.keys():
        raise ValueError(
            f"{folder}: must hold matrices of {', '.join(kinds)}, got {', '.join(sorted(found - kinds.keys()))}"
        )
    return torch.float32 if len(found) > 1 else kinds[found.pop()]


def _base(config: RunConfig, corpus: Corpus, step: Any) -> tuple[PreTrainedModel, Any]:
    base = base_named(config.base.kind)
    if not _comes_trained(config) and config.pretraining is None:
        raise ValueError(f"pretraining must be given for base.kind {base.name}, got none")
    model, tokenizer = base.make(config.base, corpus.general, config.seed)
    Shell(model, tokenizer).check(config.formats)
    if _comes_trained(config) or config.pretraining is None:
        return model, tokenizer
    documents = encode_documents(corpus.general, tokenizer, config.corpus.passage_tokens)
    _train(config, model, documents, config.pretraining, config.seed, step)
    return model, tokenizer


def _comes_trained(config: RunConfig) -> bool:
    trained = base_named(config.base.kind).trained
    return config.pretraining is None if trained is None else trained


def _fine_tune(config: RunConfig, corpus: Corpus, models: Path, name: str, step: Any) -> Callable[[], None]:
    everything = corpus.forget + corpus.forget_rest + corpus.retain
    model, tokenizer = load_model(models / "base"), load_tokenizer(models / "base")
    texts = everything if name == "target" else corpus.retain
    documents = encode_training(corpus, texts, tokenizer, config.corpus.passage_tokens)
    _train(config, model, documents, config.finetuning, config.seed + 1, step)
    _store(model, _stored_in(config, name))
    notes = _trained_notes(config, config.finetuning)
    return partial(save_model, models / name, model, tokenizer, torch.bfloat16, notes)


def _train(
    config: RunConfig, model: PreTrainedModel, documents: Documents, training: TrainingConfig, seed: int, step: Any
) -> None:
    """Train a model in place, on the device of the run."""
    torch.nn.Module.to(model, device_of(config.compute))
    products = products_of(config)
    train(model, documents, training, seed=seed, progress=step, products=products, compute=config.compute)


def _base_notes(config: RunConfig) -> dict[str, Any]:
    """Return how the base was trained; of one that came trained this is not known."""
    dtypes = TRAINED | {"checkpoint": "float32"}
    if _comes_trained(config) or config.pretraining is None:
        return {"dtypes": dtypes, "products": None, "rounding": None}
    return _trained_notes(config, config.pretraining) | {"dtypes": dtypes}


def _trained_notes(config: RunConfig, training: TrainingConfig) -> dict[str, Any]:
    """Return how a model was trained: dtypes, products, rounding."""
    arithmetic = Arithmetic(torch.float32, training.autocast, products_of(config))
    return {"dtypes": TRAINED, "products": arithmetic.products_name, "rounding": "nearest"}
