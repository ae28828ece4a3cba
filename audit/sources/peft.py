"""A PEFT LoRA adapter over its base, merged tensor by tensor as it is read; never the whole model in memory.

Merged is `w' = round(w + s B A)`, the sum in float64, rounded to float32 and then to the dtype of the base: what
`merge_and_unload` computes in float32. With DoRA, `w' = round(m / |w + s B A| (w + s B A))`, rows of length m. A
bias of B is added to that of the base, times s; rows of single tokens take the place of the base's.

    merged = open_adapter(Path("adapter"), base)
    merged.read("model.layers.0.self_attn.q_proj.weight")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.adapters.names import WHOLE, BaseNames, part_of
from unforgotten.audit.sources.adapters.tokens import TokenRows, put_rows, token_rows
from unforgotten.audit.sources.checkpoint import INDEX, SINGLE, Checkpoint, SafetensorsCheckpoint, flat_from_rows
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.files import LocalFile, WeightFile, open_file, read_all, sha256_of
from unforgotten.audit.sources.matching.comparable import embedding_of
from unforgotten.audit.sources.matching.conv1d import has_conv1d
from unforgotten.audit.sources.matching.kinds import embeddings_of_head
from unforgotten.audit.sources.matching.view import View, plain_parts
from unforgotten.audit.sources.model_config import model_config_of, model_type_of, says_untied
from unforgotten.audit.sources.notes import named, notes_of
from unforgotten.audit.sources.peft_config import AdapterConfig, fits_pattern, parse_adapter_config
from unforgotten.audit.sources.peft_orientation import Asked, is_turned
from unforgotten.audit.sources.safetensors_header import FLOATS, TensorInfo, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
MAX_CONFIG_BYTES = 1 << 24
TILE_ROWS = 64
"""Rows merged in one product, at fixed places: so that a row does not depend on the range it is read in."""


class LowRank(NamedTuple):
    """Names of the adapter's tensors for one tensor of the base.

    Attributes:
        a: name of the factor A, (r, in).
        b: name of the factor B, (out, r).
        magnitude: name of DoRA's magnitudes, (out,), or None.
        turned: whether the base stores (in, out), as an embedding does.
        scaling: factor of B A, s.
        bias: name of the bias of B, (out,), or None.
    """

    a: str
    b: str
    magnitude: str | None
    turned: bool
    scaling: float
    bias: str | None = None


@dataclass(frozen=True)
class AdapterCheckpoint:
    """A base with an adapter merged into it; `sha256` is over the base's files, the adapter and its configuration.

    Attributes:
        source: path of the adapter.
        base: the checkpoint under it.
        adapter: the adapter's own tensors.
        config: the adapter's configuration file.
        low_rank: map from base tensor to what is added to it.
        replaced: map from base tensor to the adapter's tensor that takes its place.
        tensors: dtype and shape of every tensor, see `Checkpoint.tensors`.
        said: notes on how the adapter was read.
        biases: map from base bias to what is added to it, and its factor.
        tokens: map from base matrix to the rows that take the place of its own.
    """

    source: Path | str
    base: Checkpoint
    adapter: SafetensorsCheckpoint
    config: WeightFile
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, str]
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    said: tuple[str, ...] = ()
    biases: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    tokens: Mapping[str, TokenRows] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the base, and what the adapter adds."""
        return (*notes_of(self.base), *self.said)

    @property
    def revision(self) -> str | None:
        """The commit of the base, if it comes from the Hub."""
        return self.base.revision

    def read(self, name: str) -> NDArray[Any]:
        """See `Checkpoint.read`."""
        if name not in self.low_rank and name not in self.biases and name not in self.tokens:
            return self._under(name).read(self.replaced.get(name, name))
        return self.read_rows(name, 0, self.tensors[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        under, own = self._under(name), self.replaced.get(name, name)
        if name in self.biases:
            part, scaling = self.biases[name]
            return _added(under.read_rows(own, start, stop), scaling, self.adapter.read_rows(part, start, stop))
        if name in self.tokens:
            own_rows = self.tokens[name]
            return put_rows(under.read_rows(own, start, stop), start, own_rows, self.adapter.read(own_rows.name))
        if name not in self.low_rank or start == stop:
            return under.read_rows(own, start, stop)
        merge = partial(self._merge_tile, name, self._factors(name))
        rows = self.tensors[name].shape[0]
        first = start - start % TILE_ROWS
        merged = np.empty((stop - start, self.tensors[name].shape[1]), self.tensors[name].dtype)
        for tile in range(first, stop, TILE_ROWS):
            low, high = max(tile, start), min(tile + TILE_ROWS, stop)
            whole = merge(tile, min(tile + TILE_ROWS, rows))
            merged[low - start : high - start] = whole[low - tile : high - tile]
        return merged

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """See `Checkpoint.read_flat`."""
        return flat_from_rows(self, name, start, stop)

    def check(self, name: str) -> None:
        """See `Checkpoint.check`: nothing was mapped."""

    def sha256(self) -> str:
        """Return the SHA-256 over the base's hexadecimal digest, then the adapter's bytes and its configuration's."""
        return sha256_of([*self.adapter.files, self.config], first=self.base.sha256().encode())

    def _under(self, name: str) -> Checkpoint:
        return self.adapter if name in self.replaced else self.base

    def _factors(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (rows, r) and (r, columns), the product of which is what is added, before scaling."""
        low = self.low_rank[name]
        a, b = (self.adapter.read(part).astype(np.float64) for part in (low.a, low.b))
        return (a.T, b.T) if low.turned else (b, a)

    def _merge_tile(self, name: str, factors: tuple[NDArray[Any], NDArray[Any]], start: int, stop: int) -> NDArray[Any]:
        low = self.low_rank[name]
        w = self._under(name).read_rows(self.replaced.get(name, name), start, stop)
        with np.errstate(all="ignore"):  # what is not finite is found by name where it is used
            merged = w.astype(np.float64) + low.scaling * (factors[0][start:stop] @ factors[1])
            if low.magnitude is not None:
                length = np.sqrt(np.square(merged).sum(axis=1, keepdims=True))
                magnitude = self.adapter.read(low.magnitude).astype(np.float64)
                merged *= magnitude.reshape(-1, 1)[start:stop] / length
            return merged.astype(np.float32).astype(w.dtype)


def _added(bias: NDArray[Any], scaling: float, part: NDArray[Any]) -> NDArray[Any]:
    """Return a bias with a part added to it, rounded to its dtype."""
    with np.errstate(all="ignore"):  # what is not finite is found by name where it is used
        return (bias.astype(np.float64) + scaling * part.astype(np.float64)).astype(np.float32).astype(bias.dtype)


def is_adapter(source: Path) -> bool:
    """Return whether the directory holds an adapter and no whole model, which goes before an adapter beside it."""
    return (source / CONFIG).exists() and not any((source / name).exists() for name in (SINGLE, INDEX))


def read_adapter_config(source: Path) -> tuple[AdapterConfig, LocalFile]:
    """Return the configuration of an adapter, and its file.

    Raises:
        CheckpointError: see `parse_adapter_config`.
    """
    file = open_file(source / CONFIG, source)
    return parse_adapter_config(file.path, read_all(file, MAX_CONFIG_BYTES)), file


def open_adapter(source: Path, base: Checkpoint) -> AdapterCheckpoint:
    """Match an adapter to its base.

    Raises:
        CheckpointError: the weights are a pickle or missing; a tensor of the adapter is of no known kind, has no
            place in the base, lacks its partner or has the wrong shape.
    """
    config, config_file = read_adapter_config(source)
    if not (source / WEIGHTS).exists():
        pickled = (source / PICKLE).exists()
        rule = f"must hold {WEIGHTS}" + (" (a pickle can run code)" if pickled else "")
        raise CheckpointError(source, rule, PICKLE if pickled else "none")
    file = open_file(source / WEIGHTS, source)
    return merged_over(base, SafetensorsCheckpoint(source, None, (file,), read_header(file)), config, config_file)


def merged_over(
    base: Checkpoint, adapter: SafetensorsCheckpoint, config: AdapterConfig, config_file: WeightFile
) -> AdapterCheckpoint:
    """Return a base with the tensors of an adapter merged into it.

    Raises:
        CheckpointError: as `open_adapter`.
    """
    source, file = adapter.source, adapter.files[0]
    base = _with_tied_head(adapter, base)
    names = BaseNames(base.tensors)
    parts, replaced, stored = _sort_out(adapter, base, names)
    if not parts and not replaced and not stored:
        raise CheckpointError(file.path, "must hold a tensor", "none")
    low_rank = {name: _low_rank(config, adapter, base, replaced, name, found) for name, found in parts.items()}
    tensors = dict(base.tensors)
    for name, own in replaced.items():
        tensors[name] = adapter.tensors[own]
    biases = {
        name.removesuffix("weight") + "bias": (low.bias, low.scaling) for name, low in low_rank.items() if low.bias
    }
    tokens = token_rows(config, adapter, base, stored)
    if twice := sorted(tokens.keys() & {*replaced, *low_rank}) or sorted(biases.keys() & replaced.keys()):
        raise CheckpointError(file.path, "must change a tensor of the base in one way", "two", tensor=twice[0])
    for name in (*low_rank, *biases, *tokens):
        tensors[name] = replace(tensors[name], path=file.path, offset=None)
    said = (
        *_pattern_notes(config, list(parts)),
        *_flag_notes(config, low_rank, parts),
        *_name_notes(source, names),
        *_beside_notes(source),
    )
    tensors = dict(sorted(tensors.items()))
    return AdapterCheckpoint(
        source, base, adapter, config_file, low_rank, replaced, tensors, said, biases=biases, tokens=tokens
    )


def _name_notes(source: Path | str, names: BaseNames) -> list[str]:
    """Return the sentence on tensors that the base has under another name, as when its classes were written anew."""
    if not names.renamed:
        return []
    own, other = next(iter(sorted(names.renamed.items())))
    what = f"{len(names.renamed)} tensors of the base are named otherwise than in the adapter, by wrappers alone"
    return [f"{source}: {what}: {own!a} is {other!a}."]


def _with_tied_head(adapter: SafetensorsCheckpoint, base: Checkpoint) -> Checkpoint:
    """Return the base; where the adapter speaks of a head that the base ties, with its embedding shown as that, too."""
    heads = {name for _, name in map(part_of, adapter.tensors) if embeddings_of_head(name)}
    names = BaseNames(base.tensors)
    for head in sorted(heads):
        embedding = embedding_of(base, head)
        if embedding is not None and names.find(head) is None and not says_untied(base):
            parts = plain_parts(base)
            parts[head] = parts[embedding]
            note = (
                f"{adapter.source}: the adapter changes {head}, which the base ties to {embedding!a}: the head alone is "
                "changed, as PEFT runs it; merge_and_unload would change the embedding with it."
            )
            return View(base, dict(sorted(parts.items())), (note,))
    return base


def _beside_notes(source: Path | str) -> list[str]:
    """Return a note on the weight files beside a local adapter, as parts of a merged model without its index are."""
    if not Path(source).is_dir():
        return []
    source = Path(source)
    others = sorted(path.name for path in source.iterdir() if path.suffix == ".safetensors" and path.name != WEIGHTS)
    return (
        [f"{source}: the adapter was merged into its base; beside it, and not read: {named(others)}."] if others else []
    )


def _flag_notes(
    config: AdapterConfig, low_rank: Mapping[str, LowRank], parts: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return a note on the modules whose base is stored otherwise than fan_in_fan_out says."""
    other = [
        name
        for name, low in low_rank.items()
        if low.turned != config.fan_in_fan_out and not any(part.startswith("embedding") for part in parts[name])
    ]
    if not other:
        return []
    stored = "(out, in)" if config.fan_in_fan_out else "(in, out)"
    flag = str(config.fan_in_fan_out).lower()
    what = f"the base stores {len(other)} of the matrices as {stored}, and they are merged so, as PEFT does"
    return [f"{config.path}: fan_in_fan_out is {flag}, but {what}: {named(other)}."]


def _pattern_notes(config: AdapterConfig, tensors: Sequence[str]) -> list[str]:
    """Return a note on each key of a pattern that fits no module of the adapter: a misspelled one changes nothing."""
    modules = [name.removesuffix(".weight") for name in tensors]
    return [
        f"{config.path}: the key {key!a} of {kind} fits no module of the adapter, so it changes nothing."
        for kind, keys in (("rank_pattern", config.ranks), ("alpha_pattern", config.alphas))
        for key in keys
        if not any(fits_pattern(key, module) for module in modules)
    ]


def _sort_out(
    adapter: SafetensorsCheckpoint, base: Checkpoint, names: BaseNames
) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, str]]:
    """Return base tensor -> part -> adapter tensor; and base tensor -> that in its place, and that in place of rows."""
    parts: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    tokens: dict[str, str] = {}
    for name, info in adapter.tensors.items():
        if info.dtype not in FLOATS.values():
            rule = f"must be {', '.join(FLOATS)}"
            raise CheckpointError(info.path, rule, info.dtype.name, tensor=name)
        part, wanted = part_of(name)
        own = names.find(wanted)
        if own is None:
            rule = f"must be LoRA of, or stand for, a tensor of the base {base.source}"
            raise CheckpointError(info.path, rule, f"no {wanted!r}", tensor=name)
        whole = {WHOLE: replaced, "tokens": tokens}
        place, key = (whole[part], own) if part in whole else (parts.setdefault(own, {}), part)
        if key in place:
            raise CheckpointError(info.path, f"must not be stored with {place[key]!r}", "both", tensor=name)
        place[key] = name
    return parts, replaced, tokens


def _is_turned(
    config: AdapterConfig,
    adapter: SafetensorsCheckpoint,
    base: Checkpoint,
    name: str,
    shape: tuple[int, ...],
    factors: tuple[str, str],
) -> bool:
    """Return whether the base stores (in, out), by the factors A and B and by what it says of its model."""
    a, b = (adapter.tensors[part].shape for part in factors)
    outs_ins = (b[0], a[-1]) if len(a) == len(b) == 2 else (0, 1)
    known = model_type_of(model_config_of(base))
    conv1d = has_conv1d(base.tensors, known)
    return is_turned(Asked(adapter.files[0].path, name, shape, outs_ins, config.fan_in_fan_out, known, conv1d))


def _low_rank(
    config: AdapterConfig,
    adapter: SafetensorsCheckpoint,
    base: Checkpoint,
    replaced: Mapping[str, str],
    name: str,
    found: Mapping[str, str],
) -> LowRank:
    """Return the parts of one base tensor, with their shapes checked against it."""
    path = adapter.files[0].path
    embedding = any(part.startswith("embedding") for part in found)
    wanted = {"embedding a", "embedding b"} if embedding else {"a", "b"}
    wanted |= ({"magnitude"} if config.dora else set()) | ({"bias"} if config.bias and not embedding else set())
    if set(found) != wanted or (embedding and config.dora):
        rule = f"must have the parts {', '.join(sorted(wanted))} of LoRA" + (
            " (no DoRA of an embedding)" if embedding else ""
        )
        raise CheckpointError(path, rule, ", ".join(sorted(found)), tensor=name)
    a, b = (found[("embedding " if embedding else "") + part] for part in ("a", "b"))
    under = adapter.tensors[replaced[name]] if name in replaced else base.tensors[name]
    if under.dtype not in FLOATS.values() or len(under.shape) != 2:
        rule = f"must be a matrix of {', '.join(FLOATS)} in the base"
        raise CheckpointError(path, rule, f"{under.dtype.name} {list(under.shape)}", tensor=name)
    module = name.removesuffix(".weight")
    rank = config.rank_of(module)
    turned = embedding or _is_turned(config, adapter, base, name, under.shape, (a, b))
    if turned and config.dora:
        raise CheckpointError(path, "must not be DoRA of a base that stores (in, out)", "use_dora", tensor=name)
    outs, ins = under.shape[::-1] if turned else under.shape
    shapes: dict[str, tuple[int, ...]] = {a: (rank, ins), b: (outs, rank)}
    magnitude = found.get("magnitude")
    if magnitude is not None:
        shapes[magnitude] = (outs,)
    if (bias := found.get("bias")) is not None:
        shapes[bias] = (outs,)
        _check_bias(path, base, bias, name.removesuffix("weight") + "bias", outs)
    for part, shape in shapes.items():
        if adapter.tensors[part].shape != shape:
            rule = f"must have the shape {list(shape)} of its rank and base"
            got = list(adapter.tensors[part].shape)
            rule += " (gathered from its shards before it is saved, with ZeRO-3 or FSDP)" if 0 in got else ""
            raise CheckpointError(path, rule, got, tensor=part)
    return LowRank(a, b, magnitude, turned, config.scaling_of(module), found.get("bias"))


def _check_bias(path: Path, base: Checkpoint, own: str, name: str, outs: int) -> None:
    info = base.tensors.get(name)
    if info is None or info.dtype not in FLOATS.values() or info.shape != (outs,):
        rule = f"must be added to {name!r} of the base, {outs} numbers (PEFT merges a bias into a bias alone)"
        got = "no such tensor" if info is None else f"{info.dtype.name} {list(info.shape)}"
        raise CheckpointError(path, rule, got, tensor=own)
