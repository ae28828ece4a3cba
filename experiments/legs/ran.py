"""How the models of a leg ran, and what rounding to their dtype changed.

States are float32, and quantizers compute in it; a model of 16 bits takes each weight rounded to nearest. What that changes
of the models, of their update and of their quantized values is counted, a format a row:

    ran = ran_of(pair, ["int4-g64"])
    ran["rounded"][0]["swallowed"]  # weights that the update moves and the dtype does not
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unforgotten.audit.verdict.legs import Ran, RoundedRow
from unforgotten.experiments.legs.loaded_pair import Pair
from unforgotten.experiments.quantizers.quantizer import State

CHUNK = 1 << 24
"""Weights that are compared at once."""
SIMULATED = "simulated"


def ran_of(pair: Pair, formats: Sequence[str]) -> Ran:
    """Return how the models of a pair ran; the rows of `rounded` are those of the pair itself, "none", and of each format."""
    model = pair.shell.model
    narrow = narrow_names(model)
    rows = [_row(pair, name, narrow) for name in ("none", *formats)] if narrow else []
    return Ran(dtype=dtype_of(model), devices=devices_of(model), runtime=SIMULATED, rounded=rows)


def dtype_of(model: PreTrainedModel) -> str:
    """Return the name of the dtype that a model computes in."""
    return str(model.dtype).removeprefix("torch.")


def devices_of(model: PreTrainedModel) -> list[str]:
    """Return the devices that hold a model's weights, in order."""
    return sorted({str(p.device) for p in model.parameters()})


def narrow_names(model: PreTrainedModel) -> dict[str, torch.dtype]:
    """Return the dtype of each weight that is narrower than float32, by name; tied ones come once."""
    found: dict[str, torch.dtype] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen and tensor.is_floating_point() and tensor.dtype != torch.float32:
            found[name] = tensor.dtype
        seen.add(tensor.data_ptr())
    return found


@dataclass
class _Sums:
    weights: int = 0
    target: int = 0
    unlearned: int = 0
    moved: int = 0
    swallowed: int = 0
    along: float = 0.0
    along_ran: float = 0.0
    length: float = 0.0


def _row(pair: Pair, name: str, dtypes: Mapping[str, torch.dtype]) -> RoundedRow:
    touched = dtypes.keys() if name == "none" else set(pair.shell.touched(name))
    names = [key for key in dtypes if key in touched]
    values = [pair.shell.quantized(state, name) for state in (pair.target, pair.unlearned)]
    sums = _Sums()
    for key in names:
        for before, after, q, q_new in _chunks([pair.target, pair.unlearned, *values], key):
            _add(sums, after - before, q, q_new, dtypes[key])
    return RoundedRow(
        format=name,
        weights=sums.weights,
        target=sums.target,
        unlearned=sums.unlearned,
        moved=sums.moved,
        swallowed=sums.swallowed,
        gain=sums.along / sums.length if sums.length else None,
        gain_ran=sums.along_ran / sums.length if sums.length else None,
    )


def _chunks(states: Sequence[State], key: str) -> Iterator[tuple[Tensor, ...]]:
    whole = [state[key].flatten() for state in states]
    for start in range(0, whole[0].numel(), CHUNK):
        yield tuple(w[start : start + CHUNK] for w in whole)


def _add(sums: _Sums, delta: Tensor, q: Tensor, q_new: Tensor, dtype: torch.dtype) -> None:
    ran, ran_new = (values.to(dtype).to(values.dtype) for values in (q, q_new))
    moved = q != q_new
    sums.weights += q.numel()
    sums.target += int((ran != q).sum())
    sums.unlearned += int((ran_new != q_new).sum())
    sums.moved += int(moved.sum())
    sums.swallowed += int((moved & (ran == ran_new)).sum())
    wide = delta.double()
    sums.along += float(((q_new - q).double() * wide).sum())
    sums.along_ran += float(((ran_new - ran).double() * wide).sum())
    sums.length += float((wide * wide).sum())
