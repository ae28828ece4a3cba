"""Models for pairs of known truth: what runs keep of their models, and pairs whose truth is certain by construction.

"clamped": the target and a real unlearned model, of which every weight that would leave its rounding cell stays where it
was. Q(unlearned) = Q(target) bit for bit, so rho = 1 in that format: undone.
"on grid": both models rounded to the format first. Q changes neither, bit for bit, so rho = 0 in that format: survives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.legs.likelihood import Items, batches, measure
from unforgotten.experiments.legs.loaded_pair import Pair, open_model_pair
from unforgotten.experiments.metrics.rouge import rouge_items
from unforgotten.experiments.models.batches import Batch
from unforgotten.experiments.models.generation import generate
from unforgotten.experiments.models.saved import load_model
from unforgotten.experiments.models.shell import state_of
from unforgotten.experiments.quantizers.quantizer import State
from unforgotten.experiments.quantizers.torch_path import from_blocks, to_blocks
from unforgotten.theory.formats.names import format_named

OPENING_PROMPT = 10  # tokens; the opening ends where the prompt of M1 ends, so no token is scored by both
ROUNDS = 20  # of putting flipped weights back; few are needed


class Constructed(NamedTuple):
    """A pair whose truth follows from its weights, in one format."""

    kind: str
    format: str
    target: State
    unlearned: State


def constructed(pair: Pair, format_name: str) -> Iterator[Constructed]:
    """Yield both kinds, from a target and a model unlearned from it.

    Raises:
        ValueError: the format moves a weight that is on its grid, or flipped weights cannot be put back.
    """
    q_target = pair.shell.quantized(pair.target, format_name)
    clamped = clamp(pair, format_name, q_target)
    yield Constructed("clamped", format_name, pair.target, clamped)
    on_grid = [q_target, pair.shell.quantized(pair.unlearned, format_name)]
    for state in on_grid:
        if not same(pair.shell.quantized(state, format_name), state):
            raise ValueError(f"format must keep its own grid, got format={format_name!r}")
    yield Constructed("on grid", format_name, on_grid[0], on_grid[1])


def clamp(pair: Pair, format_name: str, q_target: State) -> State:
    """Return the unlearned weights, reset where they would flip a code of the target; all else as in the target."""
    state = dict(pair.target)
    for name in pair.shell.names:
        state[name] = _inside_block(pair.target[name], pair.unlearned[name], format_name)
    for _ in range(ROUNDS):
        quantized = pair.shell.quantized(state, format_name)
        if same(quantized, q_target):
            return state
        for name in pair.shell.names:
            flipped = quantized[name] != q_target[name]
            state[name] = torch.where(flipped, pair.target[name], state[name])
    raise ValueError(f"flipped weights must go back to their codes, got format={format_name!r}")


def _inside_block(before: Tensor, after: Tensor, format_name: str) -> Tensor:
    """Clamp the new weights to the absmax of the old block, the entry that sets it unmoved, so that the scale stays."""
    fmt = format_named(format_name)
    old, new = to_blocks(before, fmt), to_blocks(after, fmt)
    top = old.abs().amax(1, keepdim=True)
    kept = torch.where(old.abs() == top, old, new.clamp(-top, top))
    return from_blocks(kept, before.shape, fmt)


def same(a: State, b: State) -> bool:
    """Tell whether two states are equal bit for bit."""
    return all(torch.equal(a[name], b[name]) for name in a)


@dataclass(frozen=True)
class Reader:
    """Measures states by what the verdict on answers does not read: likelihoods, and openings for the truth."""

    pair: Pair
    texts: list[Batch]
    prompts: list[list[int]]
    truths: list[list[int]]

    def read(self, state: State) -> Items:
        """Return loss, accuracy and probability of every passage, and ROUGE-L F1 x 100 of its opening."""
        model, tokenizer = self.pair.shell.with_state(state), self.pair.shell.tokenizer
        items = measure({"": model}, (), self.texts)[0][""]
        longest = max(len(t) for t in self.truths)
        outputs = generate(model, self.prompts, tokenizer, longest, len(self.prompts))
        said = [
            tokenizer.decode(o[: len(t)], skip_special_tokens=True) for o, t in zip(outputs, self.truths, strict=True)
        ]
        items["opening"] = rouge_items([tokenizer.decode(t) for t in self.truths], said)
        return items


def reader_of(folder: Path, pair: Pair) -> Reader:
    """Return the reader of a run's directory."""
    bench = read_benchmark(folder / "corpus", pair.shell.tokenizer, pair.shell.context)
    passages = bench.probes.passages
    ends = [len(prompt) for prompt in bench.probes.verbatim_prompts]
    pad_id = pair.shell.model.config.pad_token_id or 0
    return Reader(
        pair=pair,
        texts=batches(passages, pair.shell.model.config.vocab_size, pad_id),
        prompts=[p[:OPENING_PROMPT] for p in passages],
        truths=[p[OPENING_PROMPT:end] for p, end in zip(passages, ends, strict=True)],
    )


def read_run(folder: Path, unlearned: Sequence[str], formats: Sequence[str]) -> Iterator[tuple[str, str, Items]]:
    """Yield (model, format, items) of the target and of each unlearned model, "none" for the model itself."""
    read: tuple[Pair, Reader] | None = None
    for name in ("target", *unlearned):
        if read is None:
            pair = open_model_pair(folder / "models/target", folder / f"models/{name}")
            read, state = (pair, reader_of(folder, pair)), pair.target
        else:
            state = state_of(load_model(folder / f"models/{name}", attention=None))
        pair, reader = read
        for format_name in ("none", *formats):
            quantized = state if format_name == "none" else pair.shell.quantized(state, format_name)
            yield name, format_name, reader.read(quantized)
