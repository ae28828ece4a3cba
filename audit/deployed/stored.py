"""A quantized file opened beside the model it was made from: each matrix by the name it has there, not yet decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.codes.compare import WEIGHT, layers_of, scheme_of_checkpoint
from unforgotten.audit.codes.gguf import is_quantized_gguf
from unforgotten.audit.codes.layer import FLOAT8, CodedWeights, Layer
from unforgotten.audit.deployed.gguf_names import Place, gguf_places
from unforgotten.audit.deployed.orders import AS_STORED, TURNED, Order, as_stored, rope_orders, turned
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.gguf import GgufCheckpoint
from unforgotten.audit.sources.matching.kinds import is_expert_part
from unforgotten.audit.sources.matching.prefixes import renames
from unforgotten.audit.sources.matching.view import inner_of
from unforgotten.audit.sources.open import open_source
from unforgotten.audit.sources.quantization import Scheme
from unforgotten.audit.sources.safetensors_header import FLOATS

Pair = tuple[Checkpoint, Checkpoint]
FLOAT_NAMES: Mapping[str, str] = {dtype.name: name for name, dtype in FLOATS.items()}
OF_GGUF = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q3_k", "q4_k", "q5_k", "q6_k")
"""Types of GGUF that are formats of ours."""
TILED = ("fp8", "ct-block")
"""Layouts of float8 with a scale for each tile."""
INPUTS_FIRST = ("gptq", "awq")
"""Layouts that store a matrix as (in, out)."""
ROPE_MATRICES = ("attn_q.weight", "attn_k.weight")


@dataclass(frozen=True)
class Stored:
    """One matrix of a quantized file.

    Attributes:
        path: the file, for messages.
        kind: type that it is stored as, as Q4_K, gptq:int4-g128 or F16.
        coded: whether that is a quantized type.
        ours: name of our own format of that type; None where there is none.
        shape: shape of what `values` gives.
        orders: orders that its rows may be in, by name.
        values: function that decodes it, float32.
    """

    path: Path
    kind: str
    coded: bool
    ours: str | None
    shape: tuple[int, ...]
    orders: Mapping[str, Order]
    values: Callable[[], NDArray[Any]]


class Artefact(NamedTuple):
    """One quantized file.

    Attributes:
        checkpoint: the file.
        stored: its matrices by the name in the model.
        others: type of each quantized tensor that is none of these, by its own name.
        norms: the file's name of each vector of the model, by the model's.
    """

    checkpoint: Checkpoint
    stored: Mapping[str, Stored]
    others: Mapping[str, str]
    norms: Mapping[str, str] = MappingProxyType({})


def check_not_quantized(pair: Pair) -> None:
    """Refuse an audited pair that is quantized itself.

    Raises:
        ValueError: one side is.
    """
    for checkpoint in pair:
        if scheme_of_checkpoint(checkpoint) is not None or is_quantized_gguf(inner_of(checkpoint)):
            rule = "--deployed must stand beside models that are not quantized themselves"
            raise ValueError(f"{rule}, got {str(checkpoint.source)!r}")


def check_two_files(sources: Sequence[Path | str]) -> None:
    """Refuse two quantized models that are one.

    Raises:
        ValueError: they are.
    """
    first, second = (str(source) for source in sources)
    there = os.path.exists(first) and os.path.exists(second)
    if os.path.samefile(first, second) if there else first == second:
        raise ValueError(
            f"--deployed must name two quantized models, the target and the unlearned one, got {first!r} twice"
        )


def open_deployed(
    sources: Sequence[Path | str], pair: Pair, names: Sequence[str], vocabulary: Sequence[str] = ()
) -> tuple[Artefact, Artefact]:
    """Open the quantized target and the quantized unlearned model.

    Args:
        sources: paths or names, see `open_source`.
        pair: target and unlearned model.
        names: names of the matrices that every quantizer touches.
        vocabulary: names of embeddings and heads, which are measured where both files hold them in a quantized type.

    Raises:
        CheckpointError: a file is not quantized, has none of the matrices, or one of another shape.
        ValueError: the pair is quantized already, the files are one, or a package is missing.
    """
    check_two_files(sources)
    check_not_quantized(pair)
    target, unlearned = (_open(source, model, names, vocabulary) for source, model in zip(sources, pair, strict=True))
    both = target.stored.keys() & unlearned.stored.keys()
    alone = [name for name in vocabulary if name not in both]
    return _without(target, alone), _without(unlearned, alone)


def _open(source: Path | str, model: Checkpoint, names: Sequence[str], vocabulary: Sequence[str]) -> Artefact:
    checkpoint, every = open_source(source), (*names, *vocabulary)
    if isinstance(checkpoint, GgufCheckpoint):
        found = _of_gguf(checkpoint, model, every)
    else:
        scheme = scheme_of_checkpoint(checkpoint)
        if scheme is None:
            raise _not_quantized(checkpoint)
        found = _of_layers(checkpoint, scheme, model, every)
    found = _without(found, [n for n in vocabulary if n in found.stored and not _is_held(found.stored[n], model, n)])
    if not found.stored:
        rule = "must hold matrices of the model that it was made from, by name"
        theirs = next(iter(checkpoint.tensors), "nothing")
        raise CheckpointError(checkpoint.source, rule, f"{theirs!r} … for {names[0]!r} …")
    if not any(one.coded for one in found.stored.values()):
        raise _not_quantized(checkpoint)
    for name, one in found.stored.items():
        _check_shape(name, one, model.tensors[name].shape)
    return found


def _is_held(one: Stored, model: Checkpoint, name: str) -> bool:
    """Return whether an embedding or a head is quantized, and no rows were added to it."""
    return one.coded and one.shape == model.tensors[name].shape


def _without(found: Artefact, names: Iterable[str]) -> Artefact:
    """Return the file without matrices, which are named among the others where they are quantized."""
    gone = {name: found.stored[name] for name in names if name in found.stored}
    stored = {name: one for name, one in found.stored.items() if name not in gone}
    return found._replace(stored=stored, others={**found.others, **{n: o.kind for n, o in gone.items() if o.coded}})


def _not_quantized(checkpoint: Checkpoint) -> CheckpointError:
    dtypes = sorted({info.stored or info.dtype.name for info in checkpoint.tensors.values()})
    return CheckpointError(checkpoint.source, "must be quantized, as --deployed asks", ", ".join(dtypes))


def _check_shape(name: str, one: Stored, shape: tuple[int, ...]) -> None:
    seen = one.shape[::-1] if set(one.orders) == {TURNED} else one.shape
    if seen != shape:
        raise CheckpointError(one.path, f"must have the model's shape {list(shape)}", list(seen), tensor=name)


def _of_gguf(checkpoint: GgufCheckpoint, model: Checkpoint, names: Sequence[str]) -> Artefact:
    places = gguf_places(names, checkpoint.tensors, checkpoint.architecture)
    renamed = any(place.name != name for name, place in places.items())
    stored = {name: _gguf_tensor(checkpoint, place, renamed=renamed) for name, place in places.items()}
    taken = {place.name for place in places.values()}
    others = {name: info.stored for name, info in checkpoint.tensors.items() if info.stored and name not in taken}
    return Artefact(checkpoint, stored, others)


def _gguf_tensor(checkpoint: GgufCheckpoint, place: Place, *, renamed: bool) -> Stored:
    info = checkpoint.tensors[place.name]
    shape = info.shape if place.expert is None else info.shape[1:]
    if place.expert is not None and (len(info.shape) != 3 or place.expert >= info.shape[0]):
        rule = f"must hold expert {place.expert}, (experts, rows, columns)"
        raise CheckpointError(info.path, rule, list(info.shape), tensor=place.name)

    def values() -> NDArray[Any]:
        if place.expert is None:
            return np.asarray(checkpoint.read(place.name), np.float32)
        return np.asarray(checkpoint.read_rows(place.name, place.expert, place.expert + 1)[0], np.float32)

    paired = renamed and place.name.endswith(ROPE_MATRICES) and len(shape) == 2
    return Stored(
        path=info.path,
        kind=info.stored or FLOAT_NAMES.get(info.dtype.name, info.dtype.name),
        coded=bool(info.stored),
        ours=_ours_of_gguf(info.stored),
        shape=shape,
        orders=rope_orders(shape[0]) if paired else {AS_STORED: as_stored},
        values=values,
    )


def _ours_of_gguf(kind: str) -> str | None:
    if kind == "MXFP4":
        return "mxfp4-b32"
    return kind.lower() if kind.lower() in OF_GGUF else None


def _of_layers(checkpoint: Checkpoint, scheme: Scheme, model: Checkpoint, names: Sequence[str]) -> Artefact:
    layers = {_name_of(one): one for layer in layers_of(scheme, checkpoint).values() for one in _experts(layer)}
    parts = {part for layer in layers.values() for part in layer.parts}
    floats = {n for n, info in checkpoint.tensors.items() if info.dtype in FLOATS.values() and n not in parts}
    theirs = {*layers, *floats}
    vectors = [name for name, info in model.tensors.items() if len(info.shape) == 1]
    ours = _reversed([*names, *vectors], theirs)
    stored: dict[str, Stored] = {}
    for name in names:
        own = ours.get(name, name)
        if own in layers:
            stored[name] = _layer(checkpoint, scheme, layers[own], model.tensors[name].shape)
        elif own in floats:
            stored[name] = _float(checkpoint, own)
    taken = {ours.get(name, name) for name in stored}
    others = {name: layer.format or scheme.name for name, layer in layers.items() if name not in taken}
    norms = {name: own for name in vectors if (own := ours.get(name, name)) in floats}
    norms = {n: o for n, o in norms.items() if checkpoint.tensors[o].shape == model.tensors[n].shape}
    return Artefact(checkpoint, stored, others, norms)


def _reversed(names: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """Return the file's name of each of the model's names that has another prefix there."""
    return {own: other for other, own in renames(list(names), list(theirs)).items()}


def _experts(layer: Layer) -> Iterator[Layer]:
    """Yield the layer, or each expert of one with three axes, (experts, rows, columns)."""
    if len(layer.shape) != 3:
        yield layer
        return
    units = layer.units // layer.shape[0]
    for e in range(layer.shape[0]):

        def decode(start: int, stop: int, first: int = e * units) -> CodedWeights:
            return layer.decode(first + start, first + stop)

        yield replace(layer, name=f"{layer.name}[{e}]", shape=layer.shape[1:], units=units, decode=decode)


def _name_of(layer: Layer) -> str:
    return layer.name if is_expert_part(layer.name) else layer.name + WEIGHT


def _layer(checkpoint: Checkpoint, scheme: Scheme, layer: Layer, shape: tuple[int, ...]) -> Stored:
    other_way = scheme.layout in INPUTS_FIRST or (layer.shape != shape and layer.shape[::-1] == shape)
    square = is_expert_part(layer.name) and layer.shape == layer.shape[::-1]
    orders: Mapping[str, Order] = {TURNED: turned} if other_way else {AS_STORED: as_stored}

    def values() -> NDArray[Any]:
        return np.asarray(layer.decode(0, layer.units).values, np.float32).reshape(layer.shape)

    return Stored(
        path=layer.path,
        kind=layer.format or scheme.name,
        coded=True,
        ours=_ours_of_layer(checkpoint, scheme, layer),
        shape=layer.shape,
        orders={AS_STORED: as_stored, TURNED: turned} if square else orders,
        values=values,
    )


def _ours_of_layer(checkpoint: Checkpoint, scheme: Scheme, layer: Layer) -> str | None:
    """Return our format of the type of a layer."""
    blocks = "row" if scheme.group_size < 0 else f"g{scheme.group_size}"
    if layer.format.startswith("gptq:"):  # a layer may have bits and groups of its own
        kind, _, group = layer.format.removeprefix("gptq:").partition("-")
        return f"{kind}-{group or 'row'}" + ("-asym" if scheme.symmetric is False else "")
    if scheme.layout == "awq":
        return f"int{scheme.bits}-{blocks}-asym"
    if scheme.layout == "bnb-4bit":
        nested = layer.name + ".weight.nested_absmax" in checkpoint.tensors
        return f"{scheme.detail}-b{layer.unit_weights}" + ("-dq" if nested else "")
    if scheme.layout in ("ct-packed", "ct-plain"):
        scale = checkpoint.tensors.get(layer.name + ".weight_scale")
        blocks = "tensor" if scale is not None and max(scale.shape, default=1) == 1 else blocks
        codes = checkpoint.tensors.get(layer.name + WEIGHT)
        if codes is not None and codes.dtype == FLOAT8:
            return f"fp8-{blocks}"
        return f"int{scheme.bits}-{blocks}-ct" + ("-asym" if scheme.symmetric is False else "")
    if scheme.layout in TILED:
        return "fp8-b{}x{}".format(*scheme.tile)
    return OF_LAYOUT.get(scheme.layout)


OF_LAYOUT: Mapping[str, str] = {
    "bnb-8bit": "llmint8-row",
    "ct-nvfp4": "nvfp4",
    "modelopt-nvfp4": "nvfp4",
    "mxfp4": "mxfp4-b32",
}
"""Layout -> our format, where one has one."""


def _float(checkpoint: Checkpoint, name: str) -> Stored:
    info = checkpoint.tensors[name]

    def values() -> NDArray[Any]:
        return np.asarray(checkpoint.read(name), np.float32)

    kind = FLOAT_NAMES[info.dtype.name]
    return Stored(info.path, kind, False, None, info.shape, {AS_STORED: as_stored}, values)
