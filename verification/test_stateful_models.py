"""T1, T4 and the reader, over and over: unlearn, save, quantize, reload, in any order, on small models on disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import INDEX, SINGLE, open_checkpoint
from unforgotten.audit.sources.safetensors_header import CheckpointError
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.theory.geometry.dead_zone import frozen_exponent
from unforgotten.theory.laws.update import survival
from unforgotten.verification.chance import rng_for
from unforgotten.verification.domains.sampled_updates import UPDATES, sampled_update
from unforgotten.verification.domains.sampled_weights import sampled

DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
SHAPES = {"a.weight": (3, 32), "b.weight": (2, 64), "norm": (32,)}
FORMATS = ("int4-g32", "int8-row", "nf4-b64", "fp4-b64", "mxfp4-b32", "q8_0", "int4-row-asym")
IDEMPOTENT = ("nf4-b64", "fp4-b64", "mxfp4-b32")  # values; the float32 scale of the others drifts by an ulp
KINDS = ("normal", "heavy-tailed", "ties", "zero blocks", "bfloat16", "already quantized")
EXAMPLES_SHARE = 4  # a run of many steps counts as that many examples

Model = dict[str, NDArray[Any]]


def safetensors(tensors: Model, dtype: str) -> bytes:
    """A file as the format says, written here so that the reader meets another writer than its own tests'."""
    header, body = {}, b""
    for name, w in tensors.items():
        data = w.astype(DTYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(w.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


class ModelsOnDisk(RuleBasedStateMachine):
    """The model that should be on disk is `self.model`, float32 numbers of the dtype that stores them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.saved: Model | None = None
        self.model: Model = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(dtype=st.sampled_from(sorted(DTYPES)), kind=st.sampled_from(KINDS), seed=st.integers(0, 999))
    def train(self, dtype: str, kind: str, seed: int) -> None:
        """A target: weights of one kind, in the dtype of its storage."""
        self.dtype = dtype
        rng, fmt = rng_for("stateful", kind, seed), format_named("q8_0")
        self.model = {
            name: self.stored(sampled(kind, rng, fmt, (math.prod(shape[:-1]), shape[-1])).reshape(shape))
            for name, shape in SHAPES.items()
        }
        self.target = dict(self.model)
        self.sign_steps, self.eta = 0, 0.0
        self.pure = True  # nothing but sign steps of at most eta since the target

    def stored(self, w: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(w.astype(DTYPES[self.dtype]).astype(np.float32))

    @rule(kind=st.sampled_from(sorted(UPDATES)), seed=st.integers(0, 999))
    def unlearn(self, kind: str, seed: int) -> None:
        """One update of every tensor, rounded to storage."""
        rng, fmt = rng_for("unlearn", kind, seed), format_named("q8_0")
        for name, w in self.model.items():
            rows = w.reshape(-1, w.shape[-1])
            self.model[name] = self.stored(sampled_update(kind, rng, fmt, rows).reshape(w.shape))
        self.pure = False

    @rule(exponent=st.integers(-20, -6), seed=st.integers(0, 999))
    def sign_step(self, exponent: int, seed: int) -> None:
        """A step of one size in pure storage, as a sign method takes it."""
        rng, eta = rng_for("sign step", seed), 0.75 * 2.0**exponent
        for name, w in self.model.items():
            signs = rng.choice(np.array([-1, 1], np.float32), w.shape)
            self.model[name] = self.stored(w + np.float32(eta) * signs)
        self.sign_steps, self.eta = self.sign_steps + 1, max(self.eta, eta)

    @rule(sharded=st.booleans())
    def save(self, sharded: bool) -> None:
        """Written anew, in one file or in two with an index."""
        for path in self.folder.iterdir():
            path.unlink()
        if not sharded:
            (self.folder / SINGLE).write_bytes(safetensors(self.model, self.dtype))
        else:
            shard_of = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(self.model)}
            for shard in set(shard_of.values()):
                part = {n: w for n, w in self.model.items() if shard_of[n] == shard}
                (self.folder / shard).write_bytes(safetensors(part, self.dtype))
            (self.folder / INDEX).write_text(json.dumps({"weight_map": shard_of}))
        self.saved = dict(self.model)

    @precondition(lambda self: self.saved is not None)
    @rule()
    def reload(self) -> None:
        """What is read is what was saved, bit for bit, whole and row by row."""
        assert self.saved is not None
        checkpoint = open_checkpoint(self.folder)
        assert sorted(checkpoint.tensors) == sorted(self.saved)
        for name, w in self.saved.items():
            got = checkpoint.read(name)
            assert got.dtype == DTYPES[self.dtype]
            assert np.array_equal(got.astype(np.float32).view(np.uint32), w.view(np.uint32))
            rows = [checkpoint.read_rows(name, i, i + 1) for i in range(w.shape[0])]
            assert np.concatenate(rows).tobytes() == got.tobytes()
        self.model = {name: checkpoint.read(name).astype(np.float32) for name in self.saved}
        self.pure = self.pure and all(np.array_equal(self.model[n], self.saved[n]) for n in self.saved)

    @precondition(lambda self: self.saved is not None)
    @rule(at=st.floats(0, 1, exclude_max=True))
    def rewritten_while_open(self, at: float) -> None:
        """A file that changes under an open checkpoint is refused, not read."""
        checkpoint = open_checkpoint(self.folder)
        name = sorted(checkpoint.tensors)[int(at * len(checkpoint.tensors))]
        path = self.folder / checkpoint.tensors[name].path.name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))  # within a tick of the clock
        try:
            checkpoint.read(name)
        except CheckpointError:
            pass
        else:
            raise AssertionError("a rewritten file was read")
        finally:
            path.unlink()
            path.write_bytes(content)

    @rule(name=st.sampled_from(FORMATS))
    def requantize(self, name: str) -> None:
        """Twice is once: codes stay, and values where the format finds its own grid again."""
        fmt = format_named(name)
        for w in self.model.values():
            if not in_normal_range(w) or w.shape[-1] % (fmt.block_size or 1):
                continue
            once = round_trip(w, fmt)
            if name in IDEMPOTENT:
                assert np.array_equal(round_trip(once, fmt), once)
            elif name in ("int4-g32", "int8-row"):
                assert np.array_equal(quantize(once, fmt)[0], quantize(w, fmt)[0])

    @rule(name=st.sampled_from(FORMATS))
    def audit(self, name: str) -> None:
        """The update since the target: no more flips than moved weights on a fixed grid, and none without an update."""
        fmt = format_named(name)
        for tensor, w in self.model.items():
            before = self.target[tensor]
            if w.ndim < 2 or w.shape[-1] % (fmt.block_size or 1) or np.abs(w).max() > 2.0**15:
                continue
            got = survival(before, w, fmt, "fixed")
            assert got.unchanged == int((before == w).sum())
            assert got.value_changes <= got.code_flips <= got.weights - got.unchanged

    @invariant()
    def weights_above_the_dead_zone_are_where_they_were(self) -> None:
        """T4 over any number of steps: what is frozen at the first is frozen at the last."""
        if not self.model or not self.pure or not self.sign_steps:
            return
        edge = 2.0 ** frozen_exponent(self.eta, NAMES[self.dtype])
        for name, w in self.model.items():
            frozen = np.abs(self.target[name]) > edge
            assert np.array_equal(w[frozen], self.target[name][frozen])


def in_normal_range(w: NDArray[Any]) -> bool:
    """Every magnitude is 0 or in [2^-40, 2^14]: no parameter of these formats is subnormal."""
    size = np.abs(w[w != 0])
    return bool((size >= 2.0**-40).all() and (size <= 2.0**14).all()) and float16_scales(w)


def float16_scales(w: NDArray[Any]) -> bool:
    """Rows whose scale a float16 holds as a normal number."""
    largest = np.abs(w.reshape(-1, 32)).max(axis=1)
    return bool(((largest == 0) | (largest > 127 * 2.0**-13)).all())


TestModelsOnDisk = ModelsOnDisk.TestCase
TestModelsOnDisk.settings = settings(
    max_examples=max(5, settings().max_examples // EXAMPLES_SHARE), stateful_step_count=15
)
