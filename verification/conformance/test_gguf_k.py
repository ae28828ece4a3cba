"""Q3_K, Q4_K, Q5_K and Q6_K against the `gguf` package (values from bytes) and libggml (bytes from weights)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.experiments.quantizers.gguf import pack_q3_k, pack_q4_k, pack_q5_k, pack_q6_k
from unforgotten.theory.formats import kquants
from unforgotten.theory.formats.kquants import KBlocks, q3_k, q4_k, q5_k, q6_k
from unforgotten.verification.chance import rng_for
from unforgotten.verification.conformance.libggml import load_ggml, quantize_chunk

gguf = pytest.importorskip("gguf", reason="the library that K-quants are named after")

SUPER_BLOCKS = 64


class KType(NamedTuple):
    quantize: Callable[[NDArray[Any]], KBlocks]
    pack: Callable[[KBlocks], NDArray[Any]]
    name: str
    number: int


K_TYPES = (
    KType(q3_k, pack_q3_k, "Q3_K", 11),
    KType(q4_k, pack_q4_k, "Q4_K", 12),
    KType(q5_k, pack_q5_k, "Q5_K", 13),
    KType(q6_k, pack_q6_k, "Q6_K", 14),
)
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[Any]]] = {
    "normal": lambda rng, shape: rng.normal(0, 0.02, shape),
    "student": lambda rng, shape: 0.02 * rng.standard_t(3, shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "positive": lambda rng, shape: rng.uniform(0.5, 1, shape),
    "negative": lambda rng, shape: -rng.exponential(1, shape),
    "sparse": lambda rng, shape: rng.normal(0, 1, shape) * (rng.random(shape) < 0.05),
    "lattice": lambda rng, shape: rng.integers(-8, 8, shape) * 0.125,
    "constant": lambda rng, shape: np.repeat(rng.normal(0, 1, (shape[0], 8)), 32, axis=1),
    "float16 underflows": lambda rng, shape: rng.normal(0, 1e-7, shape),
    "float32 underflows": lambda rng, shape: rng.normal(0, 1e-13, shape),
    "zero": lambda rng, shape: rng.normal(0, 1e-20, shape),
    "large": lambda rng, shape: rng.normal(0, 1e5, shape),
}


def weights(name: str) -> NDArray[Any]:
    drawn = DISTRIBUTIONS[name](rng_for("k-quants", name), (SUPER_BLOCKS, 256))
    return drawn.astype(np.float32)


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    return load_ggml()


def library_bytes(library: ctypes.CDLL, x: NDArray[Any], kind: KType) -> NDArray[Any]:
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
    out = np.zeros((len(x), size), np.uint8)
    assert quantize_chunk(library, x, kind.number, out) == out.size
    return out


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", K_TYPES, ids=lambda k: k.name)
def test_k_values__are_those_of_gguf(kind: KType, name: str) -> None:
    quantized = kind.quantize(weights(name))
    values = gguf.quants.dequantize(kind.pack(quantized), gguf.GGMLQuantizationType[kind.name])
    assert np.array_equal(values, quantized.values)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", K_TYPES, ids=lambda k: k.name)
def test_k_bytes__are_those_of_libggml(ggml: ctypes.CDLL, kind: KType, name: str) -> None:
    x = weights(name)
    assert np.array_equal(kind.pack(kind.quantize(x)), library_bytes(ggml, x, kind))


@pytest.mark.parametrize("passes", [0, 1, 2, 3])
def test_q3_k_bytes__need_the_passes_over_the_codes(
    ggml: ctypes.CDLL, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison has power: with fewer passes other super-blocks come out."""
    x = rng_for("k-quants", "passes").standard_t(3, (4096, 256)).astype(np.float32)
    expected = library_bytes(ggml, x, K_TYPES[0])
    assert np.array_equal(pack_q3_k(q3_k(x)), expected)
    monkeypatch.setattr(kquants, "PASSES", passes)
    assert not np.array_equal(pack_q3_k(q3_k(x)), expected)


@pytest.mark.parametrize("kind", K_TYPES[1:], ids=lambda k: k.name)
def test_k_bytes__need_sums_from_left_to_right(ggml: ctypes.CDLL, kind: KType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has power: sums rounded once, not after every term, change about 2 % of the super-blocks."""
    x = rng_for("k-quants", "sums").normal(0, 0.02, (1024, 256)).astype(np.float32)
    expected = library_bytes(ggml, x, kind)
    assert np.array_equal(kind.pack(kind.quantize(x)), expected)
    monkeypatch.setattr(kquants, "_sum", lambda t: t.sum(axis=1, dtype=np.float64).astype(np.float32))
    assert not np.array_equal(kind.pack(kind.quantize(x)), expected)
