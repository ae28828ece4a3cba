"""A pilot: a short float32 run of an unlearning method that records its gradients, for a forecast of other storages.

recorded = pilot(Path("runs/tiny-seed0"), "NPO_GDR")
write_gradients(Path("gradients.npz"), recorded)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.audit.progress.stages import Step, ignore
from unforgotten.experiments.arms.arm import Arm
from unforgotten.experiments.arms.states import goals, loss_of_retrained
from unforgotten.experiments.compute.device import device_of
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.inputs import corpus_of_run
from unforgotten.experiments.methods.method import Task
from unforgotten.experiments.methods.reference import References
from unforgotten.experiments.methods.registry import method_named
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.matrices.conv1d import conv1d_names, turned_matrix
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.shell import linear_names
from unforgotten.records.gradients import BLOCK, SETTINGS, Gradients

BLOCKS = 1000


class GradientRecorder:
    """Records the gradients of a sample of blocks, drawn evenly from all blocks of all matrices that quantizers touch.

    Args:
        model: model before its first step.
        blocks: number of blocks, of BLOCK neighbours of a row each; all if there are fewer.
        seed: seed of the draw.

    Raises:
        ValueError: no matrix has rows of whole blocks.
    """

    def __init__(self, model: PreTrainedModel, blocks: int = BLOCKS, seed: int = 0) -> None:
        weights = _matrices(model)
        counts = np.array([w.numel() // BLOCK for w in weights.values()])
        if not counts.sum():
            raise ValueError(f"model must have matrices of rows of {BLOCK} weights or a multiple, got none")
        ends = np.cumsum(counts)
        drawn = np.random.default_rng(seed).choice(ends[-1], min(blocks, int(ends[-1])), replace=False)
        self._parts = {
            name: torch.from_numpy(np.sort(drawn[(drawn >= end - count) & (drawn < end)]) - (end - count))
            for name, end, count in zip(weights, ends, counts, strict=True)
        }
        self._weights = self._sample(list(weights.values()))
        rows = [
            w.detach().float().abs().flatten(0, -2).amax(1)[((at * BLOCK) // w.shape[-1]).to(w.device)]
            for w, at in zip(weights.values(), self._parts.values(), strict=True)
        ]
        self._row_absmax = torch.cat(rows).cpu().numpy()
        self._gradients: list[NDArray[np.float32]] = []
        self._lr: list[float] = []

    def __call__(self, model: PreTrainedModel, lr: float) -> None:
        """Record the gradients that the optimizer is about to be given.

        Args:
            model: model with its gradients, clipped.
            lr: learning rate of the step.

        Raises:
            ValueError: a matrix has no gradient.
        """
        gradients = _matrices(model, gradient_of)
        self._gradients.append(self._sample(list(gradients.values())))
        self._lr.append(lr)

    def recorded(self, **settings: float) -> Gradients:
        """Return all that was recorded; `settings` of AdamW replace those of torch."""
        return Gradients(
            self._weights, self._row_absmax, np.stack(self._gradients), np.array(self._lr), {**SETTINGS, **settings}
        )

    def _sample(self, tensors: Sequence[Tensor]) -> NDArray[np.float32]:
        found = [
            tensor.detach().float().reshape(-1, BLOCK)[at.to(tensor.device)]
            for tensor, at in zip(tensors, self._parts.values(), strict=True)
        ]
        return np.asarray(torch.cat(found).cpu().numpy(), np.float32)


def gradient_of(name: str, weight: Tensor) -> Tensor:
    """Return the gradient of a weight.

    Raises:
        ValueError: there is none.
    """
    if weight.grad is None:
        raise ValueError(f"{name} must have a gradient, got none")
    return weight.grad


def _matrices(model: PreTrainedModel, of: Callable[[str, Tensor], Tensor] = lambda _, w: w) -> dict[str, Tensor]:
    """Return what is of the weights of linear layers, (out, in), whose rows are whole blocks, by name."""
    parameters, across = dict(model.named_parameters()), conv1d_names(model)
    shown = {name: turned_matrix(parameters[name], name, across) for name in linear_names(model)}
    whole = [name for name, w in shown.items() if w.shape[-1] % BLOCK == 0]
    return {name: turned_matrix(of(name, parameters[name]), name, across) for name in whole}


def pilot(folder: Path, method: str, *, blocks: int = BLOCKS, progress: Step = ignore) -> Gradients:
    """Unlearn the target of a run once more in float32, by the rules of the run, and return the gradients.

    Args:
        folder: directory of a run, with its models.
        method: method of the run's configuration that is made of losses and descended by AdamW.
        blocks: number of blocks that are recorded.
        progress: function that is told of each step.

    Raises:
        ValueError: the folder holds no run with its target, the method is none of its configuration, or it makes no steps
            of AdamW.
    """
    config = config_of(folder)
    if method not in config.unlearning.methods:
        known = ", ".join(config.unlearning.methods)
        raise ValueError(f"method must be one of {known}, got method={method!r}")
    torch.set_num_threads(config.threads)
    corpus = corpus_of_run(config, folder)
    model, tokenizer = (load(folder / "models/target") for load in (load_model, load_tokenizer))
    torch.nn.Module.to(model, device_of(config.compute))
    probes = make_probes(corpus, tokenizer, config)
    references = References(probes.forget, probes.retain, config.evaluation.batch)
    arm = Arm(method, "fp32")
    arithmetic = arm.arithmetic(config)
    recorder = GradientRecorder(model, blocks, config.seed)
    task = Task(
        forget=probes.forget,
        retain=probes.retain,
        watched=probes.passages,
        common=config.unlearning,
        storage="fp32",
        arithmetic=arithmetic,
        reference=lambda target: references.of(target, arithmetic),
        seed=config.seed + 2,
        progress=progress,
        paired=config.corpus.pairing == "fixed",
        tokenizer=tokenizer,
        before_step=recorder,
        compute=config.compute,
        goals=goals(config, arm, lambda: loss_of_retrained(config, folder / "models", probes.passages)),
    )
    outcome = method_named(method).unlearn(model, task, config.unlearning.methods[method])
    recorded = recorder.recorded()
    if len(recorded.lr) != outcome.steps:
        raise ValueError(f"method must make steps of AdamW, got {method!r}, which told of {len(recorded.lr)}")
    optimizer = outcome.settings.get("optimizer", "adamw")
    if optimizer != "adamw":
        raise ValueError(
            f"method must make steps of AdamW and nothing else, got {method!r}, by {optimizer or 'another rule'}"
        )
    return recorded


def config_of(folder: Path) -> RunConfig:
    """Return the configuration of a run that holds its models.

    Raises:
        ValueError: the folder holds none.
    """
    for path in (folder / "config.json", folder / "models/target"):
        if not path.exists():
            raise ValueError(f"{folder}: must be the directory of a run with its models, got none of {path.name}")
    try:
        return RunConfig.model_validate_json((folder / "config.json").read_bytes())
    except ValueError:
        raise ValueError(f"{folder}/config.json: must be the configuration of a run, as `run` writes it") from None
