"""GPTQ and AWQ: int32 words of codes, a scale and a zero point for every group of inputs; weights as (in, out)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.codes.layer import FLOAT_DTYPES, INT32, CodedWeights, Layer, Parts, Zeros, group_of, only, unpack
from unforgotten.audit.sources.checkpoint import Checkpoint
from unforgotten.audit.sources.quantization import Scheme

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of an int32 holds output AWQ_ORDER[i] of its eight


def gptq(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of `qweight` (in/k, out), k = 32/bits codes a word; value = scale (q - zero), see `_zeros`."""
    parts = Parts(checkpoint, name)
    parts.take(".qweight", only(INT32), (None, None))
    if scheme.others:
        scheme = _own_scheme(scheme, parts)
    per_word = 32 // scheme.bits
    words, outs = parts.shape(".qweight")
    ins = words * per_word
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".scales", FLOAT_DTYPES, (groups, outs))
    parts.take(".qzeros", only(INT32), (groups, -(-outs // per_word)))
    group = group_of(scheme, parts, ".g_idx", ins, groups)

    def read_zeros() -> Zeros:
        return _zeros(scheme, parts.read(".qzeros"), outs)

    def decode(start: int, stop: int) -> CodedWeights:
        packed = checkpoint.read_rows(name + ".qweight", start, stop)
        turned = unpack(packed.reshape(-1, 1), scheme.bits, per_word)
        codes = turned.reshape(stop - start, outs, per_word).swapaxes(1, 2).reshape(-1, outs)
        zeros = read_zeros().values.astype(np.float32)
        g = group[start * per_word : stop * per_word]
        return CodedWeights(codes, parts.float32(".scales")[g] * (codes.astype(np.float32) - zeros[g]))

    layer = parts.layer(".qweight", (ins, outs), words, per_word * outs, decode)
    return replace(layer, zeros=read_zeros, format=scheme.name)


def _own_scheme(scheme: Scheme, parts: Parts) -> Scheme:
    """Return the scheme of one layer, by which of the stated bits and group sizes its shapes have.

    Raises:
        CheckpointError: none of them fits, or two that decode the layer differently do.
    """
    parts.take(".scales", FLOAT_DTYPES, (None, None))
    parts.take(".qzeros", only(INT32), (None, None))
    stated = ((scheme.bits, scheme.group_size), *scheme.others)
    found: dict[tuple[int, int], Scheme] = {}
    for bits, group in stated:
        ins = parts.shape(".qweight")[0] * (32 // bits)
        size = ins if group < 0 else min(group, ins)
        if _fits(parts, bits, ins, -(-ins // size)):
            read = (bits, 0 if parts.has(".g_idx") else size)
            found.setdefault(read, scheme._replace(bits=bits, group_size=group))
    if len(found) != 1:
        shown = ", ".join(f"{bits} bits in groups of {group}" for bits, group in stated)
        rule = f"must have the shapes of {'just ' if found else ''}one of the settings of config.json ({shown})"
        shapes = [list(parts.shape(end)) for end in (".qweight", ".scales", ".qzeros")]
        raise parts.refuse(".qweight", rule, shapes)
    return next(iter(found.values()))


def _fits(parts: Parts, bits: int, ins: int, groups: int) -> bool:
    """Return whether the shapes of a layer are those of so many bits, inputs and groups."""
    outs = parts.shape(".qweight")[1]
    zeros = (groups, -(-outs * bits // 32))
    index = not parts.has(".g_idx") or parts.shape(".g_idx") == (ins,)
    return index and parts.shape(".scales") == (groups, outs) and parts.shape(".qzeros") == zeros


def _zeros(scheme: Scheme, words: NDArray[Any], outs: int) -> Zeros:
    """Decode zero points: format v1 stores each word less one in every code, so that a 0 borrows from the code above it.

    Whole words are subtracted there, modulo 2^32, and whole words are added back here.
    """
    ones = sum(scheme.zero_shift << at for at in range(0, 32, scheme.bits))
    stored = np.ascontiguousarray(words).view(np.uint32)
    whole = stored + np.uint32(ones)
    values = unpack(whole.view(np.int32), scheme.bits, outs)
    alone = unpack(words, scheme.bits, outs).astype(np.int64) + scheme.zero_shift
    return Zeros(values, whole, int(np.count_nonzero(values != alone)), scheme.bits)


def awq(scheme: Scheme, checkpoint: Checkpoint, name: str) -> Layer:
    """Return a layer of `qweight` (in, out/8), 8 outputs a word in AWQ_ORDER; value = scale (q - zero)."""
    parts = Parts(checkpoint, name)
    parts.take(".qweight", only(INT32), (None, None))
    ins, words = parts.shape(".qweight")
    outs = words * len(AWQ_ORDER)
    groups = 1 if scheme.group_size < 0 else -(-ins // scheme.group_size)
    parts.take(".scales", FLOAT_DTYPES, (groups, outs))
    parts.take(".qzeros", only(INT32), (groups, words))
    group = group_of(scheme, parts, ".g_idx", ins, groups)

    def ordered(packed: NDArray[Any]) -> NDArray[np.uint8]:
        nibbles = unpack(packed, 4, outs).reshape(len(packed), words, 8)
        codes = np.empty_like(nibbles)
        codes[:, :, AWQ_ORDER] = nibbles
        return codes.reshape(len(packed), outs)

    def decode(start: int, stop: int) -> CodedWeights:
        codes, g = (ordered(checkpoint.read_rows(name + ".qweight", start, stop)), group[start:stop])
        zeros = ordered(parts.read(".qzeros")).astype(np.float32)
        return CodedWeights(codes, parts.float32(".scales")[g] * (codes.astype(np.float32) - zeros[g]))

    return parts.layer(".qweight", (ins, outs), ins, outs, decode)
