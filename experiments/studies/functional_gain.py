"""The functional gain (T20) of a run's models beside the gain of their weights, and what came back of the forget loss.

One backward pass at the unlearned model and, with `second_order`, a Hessian-vector product for each format. `came_back_gating` is the forget loss
of the unlearned model less that of the target with the surviving update, `came_back` less that of the quantized model, which
holds the base shift too: positive, where less is forgotten than before.

Settings: the folders of the runs, with their models, and formats. The rows of all of them go to `rows.jsonl`.

    unforgotten study functional-gain --set runs=[runs/tiny-seed0] --out runs/functional-gain
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.audit.progress.stages import Progress
from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.legs.functional import SHAMS, sham
from unforgotten.experiments.metrics.effects import hybrid_states
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.batches import Documents
from unforgotten.experiments.models.saved import load_model, load_notes, load_tokenizer
from unforgotten.experiments.models.scoring import batches_of, mean_loss, score_batch
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.experiments.run import revision
from unforgotten.experiments.section import Section
from unforgotten.experiments.studies.study import Study
from unforgotten.records.depths import stem
from unforgotten.records.files import write_json_lines
from unforgotten.theory.formats.names import format_named

TOGETHER = 4
"""Documents of one backward pass."""


class Pair(NamedTuple):
    """A target and an unlearned model in one shell, and the documents of their forget loss."""

    shell: Shell
    target: State
    unlearned: State
    documents: Documents

    @property
    def model(self) -> PreTrainedModel:
        """The model with the unlearned weights."""
        return self.shell.with_state(self.unlearned)

    def loss(self, state: State) -> float:
        """Return the forget loss of a state, in nats a token."""
        return mean_loss(self.shell.with_state(state), self.documents, TOGETHER)

    def flat(self, state: Mapping[str, Tensor]) -> NDArray[Any]:
        """Return the quantized weights of a state as one float64 vector, in the order of their names."""
        return np.concatenate([state[name].detach().double().numpy().ravel() for name in self.shell.names])


def slopes(pair: Pair) -> dict[str, Tensor]:
    """Return the gradient of the forget loss at the unlearned weights, for the weights that are quantized."""
    weights = _weights(pair)
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for part in _losses(pair):
        for name, slope in zip(weights, torch.autograd.grad(part, list(weights.values())), strict=True):
            total[name] += slope
    return total


def bend(pair: Pair, along: Mapping[str, Tensor]) -> float:
    """Return e'H e of the forget loss at the unlearned weights, by a Hessian-vector product for each batch.

    Args:
        pair: the two models.
        along: e, for the weights that are quantized.
    """
    weights = _weights(pair)
    vector = [along[name] for name in weights]
    total = 0.0
    for part in _losses(pair):
        found = torch.autograd.grad(part, list(weights.values()), create_graph=True)
        dot = torch.stack([(g * e).sum() for g, e in zip(found, vector, strict=True)]).sum()
        curved = torch.autograd.grad(dot, list(weights.values()))
        total += sum(float((h.double() * e.double()).sum()) for h, e in zip(curved, vector, strict=True))
    return total


def _weights(pair: Pair) -> dict[str, Tensor]:
    parameters = dict(pair.model.named_parameters())
    return {name: parameters[name] for name in pair.shell.names}


def _losses(pair: Pair) -> Iterator[Tensor]:
    """Yield the parts of the forget loss, batch by batch; they add up to it."""
    model = pair.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in pair.shell.names)
    for batch in batches_of(model, pair.documents, TOGETHER):
        scored = score_batch(model, batch)
        yield -(scored.label.sum(-1) / scored.mask.sum(-1)).sum() / len(pair.documents)


def measured(pair: Pair, formats: Sequence[str], *, second_order: bool) -> Iterator[dict[str, Any]]:
    """Yield what one pair shows in each format."""
    before, after = pair.loss(pair.target), pair.loss(pair.unlearned)
    slope = slopes(pair)
    g, delta = pair.flat(slope), pair.flat(pair.unlearned) - pair.flat(pair.target)
    for name in formats:
        q, q_new = (pair.shell.quantized(state, name) for state in (pair.target, pair.unlearned))
        survivor = {k: q_new[k] - q[k] for k in pair.shell.names}
        error = {k: survivor[k] - (pair.unlearned[k] - pair.target[k]) for k in pair.shell.names}
        kept = pair.flat(survivor)
        hybrid = hybrid_states(pair.shell.names, pair.target, pair.unlearned, q, q_new)["target+D"]
        effect = float(g @ delta)  # plain float64: an exact sum of a million terms takes seconds
        gamma = float(g @ kept) / effect
        shams = [_sham_of(pair, name, q, seed, g, effect) for seed in range(SHAMS)]
        yield {
            "format": name,
            "gain": float(kept @ delta / (delta @ delta)),
            "functional_gain": gamma,
            "first_order": effect,
            "sham_gain": float(np.mean([gain for gain, _ in shams])),
            "sham_shift": max(abs(shift) for _, shift in shams),
            "second_order_share": 1 - gamma - bend(pair, error) / effect / 2 if second_order else None,
            "target_loss": before,
            "loss": after,
            "came_back_gating": after - pair.loss(hybrid),
            "came_back": after - pair.loss(q_new),
        }


def _sham_of(pair: Pair, format_name: str, q: State, seed: int, g: NDArray[Any], effect: float) -> tuple[float, float]:
    """Return the gain of a random update as long as the own one, and what its rounding moves the functional gain by."""
    state = sham(pair.target, pair.unlearned, seed)
    moved = pair.flat(state) - pair.flat(pair.target)
    left = pair.flat(pair.shell.quantized(state, format_name)) - pair.flat(q)
    return float(left @ moved / (moved @ moved)), float(g @ (left - moved)) / effect


def functional_gains(folder: Path, formats: Sequence[str], *, second_order: bool) -> Iterator[dict[str, Any]]:
    """Yield one row for each unlearned model of a run and each format, in the order of the models' names."""
    config = RunConfig.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    torch.set_num_threads(config.threads)
    models = folder / "models"
    corpus, _ = prepare_corpus(config.corpus, config.seed, folder / "corpus")
    tokenizer = load_tokenizer(models / "target")
    probes = make_probes(corpus, tokenizer, config)
    shell = Shell(load_model(models / "target"), tokenizer)
    target = state_of(load_model(models / "target"))
    for path in sorted(models.glob("unlearned-*")):
        _, method, storage = path.name.split("-", 2)
        notes = load_notes(path)
        depth = notes.get("depth")
        arm = {
            "run": folder.name,
            "method": method,
            "storage": storage if depth is None else storage.removesuffix(f"-{stem(depth)}"),
            **({} if depth is None else {"depth": depth}),
            "seed": config.seed,
            "lr": notes.get("lr"),
            "steps": notes["steps"],
        }
        pair = Pair(shell, target, state_of(load_model(path)), probes.passages)
        for row in measured(pair, formats, second_order=second_order):
            yield {**arm, **row, "revision": revision()}


class RunsAndFormats(Section):
    """Folders of runs, with their models; the formats to measure; whether curvature is measured too."""

    runs: tuple[Path, ...]
    formats: tuple[str, ...] = Field(min_length=1)
    second_order: bool = False


def _measure(settings: RunsAndFormats, folder: Path, progress: Progress) -> None:
    for name in settings.formats:
        format_named(name)
    rows: list[dict[str, Any]] = []
    for run in settings.runs:
        with progress.stage(f"measure {run.name}"):
            rows += functional_gains(run, settings.formats, second_order=settings.second_order)
    write_json_lines(folder / "rows.jsonl", rows)


STUDY = Study(RunsAndFormats, lambda settings: len(settings.runs), _measure)
