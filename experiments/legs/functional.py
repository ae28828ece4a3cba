"""The functional gain of an audit (T20): what a format leaves of an update along the gradient of the forget loss.

One backward pass of the unlearned model gives the gradient; the rest is sums over weights, tensor by tensor. Beside the update
goes a sham: random directions, as long as the update in each tensor, through the same quantizer. What their rounding moves the
loss by, to first order, is how far from 1 a functional gain may lie by chance.

    found = functional_leg(pair, ["int4-g64"], documents)
    found["formats"][0]["functional_gain"]
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from unforgotten.audit.progress.stages import Begin
from unforgotten.audit.verdict.legs import FunctionalLeg, FunctionalRow
from unforgotten.experiments.compute.checkpointing import checkpointed
from unforgotten.experiments.legs.loaded_pair import Pair
from unforgotten.experiments.models.batches import Documents, pad
from unforgotten.experiments.models.scoring import score_batch
from unforgotten.experiments.models.states import LazyState
from unforgotten.experiments.quantizers.quantizer import State

LONGEST = 256
"""Tokens of a text whose gradient is taken: a backward pass keeps the activations of all of them, of a layer where it can."""
MOST_TOKENS = 16_384
"""Tokens in all: the texts are taken in a random order until they are used up."""
SHAMS = 3
"""Random updates."""
SEED = 0


def functional_leg(
    pair: Pair, formats: Sequence[str], documents: Documents, begin: Begin = lambda name: None
) -> FunctionalLeg | None:
    """Measure the gain, the functional gain and the sham's in every format; None of a model in float16.

    Gradients of a mean loss are below what float16 holds, 2^-24, in many weights, and a sum without them is another one.
    The gradient, one float32 copy of the weights, lies in files while it is used.

    Args:
        pair: the two models; its shell takes the unlearned weights.
        formats: names of formats.
        documents: token ids of the forget texts, at least one of two tokens.
        begin: callback that is told what comes next.
    """
    if pair.shell.model.dtype == torch.float16:
        return None
    chosen = sample(documents)
    touched = {name: pair.shell.touched(name) for name in formats}
    every = sorted({name for names in touched.values() for name in names})
    with TemporaryDirectory() as folder:
        begin("gradient")
        slopes = gradient(pair, every, chosen, Path(folder))
        rows = []
        for name in formats:
            begin(f"functional gain {name}")
            rows.append(_row(pair, name, touched[name], slopes))
        del slopes
    return FunctionalLeg(
        texts=len(chosen), of=len(documents), tokens=sum(len(d) - 1 for d in chosen), shams=SHAMS, formats=rows
    )


def sample(documents: Documents) -> list[list[int]]:
    """Return the beginnings of texts in a random order, as many as MOST_TOKENS allow, at least one."""
    order = np.random.default_rng(SEED).permutation(len(documents)).tolist()
    found: list[list[int]] = []
    for i in order:
        text = list(documents[i])[:LONGEST]
        if len(text) > 1 and (not found or sum(map(len, found)) + len(text) <= MOST_TOKENS):
            found.append(text)
    return found


class Slopes:
    """The gradient, a file a weight: no more than one is in memory, where a mapped file would count as memory of the process.

    A weight that the loss does not depend on has zeros.

    Attributes:
        folder: directory of the files, which outlives it.
        shapes: shape of each weight, by name.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, torch.Size]) -> None:
        """Begin with zeros."""
        self.shapes = shapes
        self._paths = {name: folder / str(i) for i, name in enumerate(shapes)}
        for path in self._paths.values():
            path.unlink(missing_ok=True)

    def __getitem__(self, name: str) -> Tensor:
        """Return the gradient of one weight, float32."""
        if not self._paths[name].exists():
            return torch.zeros(self.shapes[name])
        return torch.from_numpy(np.fromfile(self._paths[name], np.float32)).reshape(self.shapes[name])

    def add(self, name: str, part: Tensor) -> None:
        """Add to the gradient of one weight."""
        (self[name] + part.cpu().float()).numpy().tofile(self._paths[name])


def gradient(pair: Pair, names: Sequence[str], documents: Documents, folder: Path) -> Slopes:
    """Return the gradient of the mean forget loss, nats a token, at the unlearned weights; kept in files of `folder`.

    Args:
        pair: the two models.
        names: names of the weights whose gradient is wanted.
        documents: token ids, each of two tokens at least.
        folder: directory that outlives the gradient.
    """
    model = pair.shell.with_state(pair.unlearned)
    own = dict(model.named_parameters())
    found = Slopes(folder, {name: own[name].shape for name in names})
    again = any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())
    with (
        checkpointed(model, enabled=again),
        _collected({name: own[name] for name in names}, found, model),
        torch.enable_grad(),
    ):
        for text in documents:  # one by one: a batch would hold the activations of all its texts
            scored = score_batch(model, pad([text], model.config.pad_token_id or 0).on(model.device))
            (-(scored.label.sum() / scored.mask.sum()) / len(documents)).backward()
    return found


@contextmanager
def _collected(weights: Mapping[str, Tensor], found: Slopes, model: torch.nn.Module) -> Iterator[None]:
    """Add the gradient of each weight to what was found, as soon as it is there, and keep no other."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    for p in model.parameters():
        p.requires_grad_(False)

    def collect(name: str, p: Tensor) -> None:
        if p.grad is not None:
            found.add(name, p.grad)
            p.grad = None

    handles = []
    for name, weight in weights.items():
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(lambda p, name=name: collect(name, p)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, p in model.named_parameters():
            p.requires_grad_(before[name])
            p.grad = None


def _row(pair: Pair, format_name: str, names: Sequence[str], slopes: Slopes) -> FunctionalRow:
    q = pair.shell.quantized(pair.target, format_name)
    q_new = pair.shell.quantized(pair.unlearned, format_name)
    shams = [sham(pair.target, pair.unlearned, seed) for seed in range(SHAMS)]
    q_shams = [pair.shell.quantized(state, format_name) for state in shams]
    weights = effect = length = along = slope = 0.0
    sham_along, sham_slope = np.zeros(SHAMS), np.zeros(SHAMS)
    for name in names:
        w, base, g = pair.target[name], q[name], slopes[name]
        delta, kept = pair.unlearned[name] - w, q_new[name] - base
        weights += w.numel()
        effect += _dot(g, delta)
        length += _dot(delta, delta)
        along += _dot(kept, delta)
        slope += _dot(g, kept)
        for k in range(SHAMS):
            moved, left = shams[k][name] - w, q_shams[k][name] - base
            sham_along[k] += _dot(left, moved)
            sham_slope[k] += _dot(g, left - moved)
    shifts = (sham_slope / effect).tolist() if effect else []
    return FunctionalRow(
        format=format_name,
        weights=int(weights),
        first_order=effect,
        gain=along / length if length else None,
        functional_gain=slope / effect if effect else None,
        sham_gain=float(sham_along.mean() / length) if length else None,
        sham_shift=max(map(abs, shifts), default=None),
    )


def sham(target: State, unlearned: State, seed: int) -> LazyState:
    """Return the target moved in a random direction, in each tensor as far as the update moved it."""

    def weight(name: str) -> Tensor:
        w, w_new = target[name], unlearned[name]
        length = (w_new - w).double().norm()
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        noise = torch.randn(w.shape, generator=generator).to(w)
        return w + (noise * (length / noise.double().norm())).to(w) if length else w

    return LazyState(target, weight)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double().to(a.device)).sum())
