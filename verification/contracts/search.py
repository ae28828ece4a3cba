"""Contracts against somebody else's quantizer: Hypothesis looks for weights that break one, and shrinks them.

Takes a described quantizer; gives an object for JSON: the verdict on every contract that its claims imply, and the
smallest weights that break one.

>>> from unforgotten.verification.contracts.libraries import reference
>>> judge(next(iter(CONTRACTS)), reference("int4-g32"), examples=5, seed=0).outcome
'holds'
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import Phase, find, settings
from hypothesis.errors import Flaky, NoSuchExample
from numpy.typing import NDArray

from unforgotten.audit.progress.stages import SILENT, Progress
from unforgotten.theory.formats.names import Format, format_named
from unforgotten.verification.chance import rng_for
from unforgotten.verification.contracts.described import Quantizer
from unforgotten.verification.contracts.general import POWERS
from unforgotten.verification.contracts.outcome import Outcome, Verdict, as_object
from unforgotten.verification.contracts.registry import BASIC, CONTRACTS, Contract, Counterexample
from unforgotten.verification.domains.strategies import tensors

Array = NDArray[Any]
EXAMPLES: Mapping[str, int] = {"dev": 50, "ci": 200, "nightly": 1_000}  # as in conftest.py
SCHEMA = "unforgotten.verify/1"
NORMAL = 2.0**60  # weights of a contract on exact scaling, at most


def violation(contract: Contract, q: Quantizer, w: Array) -> Counterexample | None:
    """Return what a quantizer does wrong on these weights; raising an exception is wrong too."""
    try:
        return contract.check(q, w)
    except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
        return Counterexample(w, None, f"it raised {type(error).__name__}: {error}")


def drawn_as(q: Quantizer) -> Format:
    """Return a format whose blocks and thresholds are those of the quantizer, for the strategies."""
    levels = q.levels or tuple(float(k) for k in range(-127, 128))
    ranged = q.statistic in ("range", "min-max")
    shifted = tuple(x - levels[0] for x in levels) if ranged else levels
    counted = all(high - low == 1 for low, high in pairwise(shifted))
    return replace(
        format_named("int8-tensor"),
        rounding="half-even" if counted else "half-lower",
        levels=shifted,
        labels=tuple(range(len(levels))),
        block=q.block or "tensor",
        block_size=q.block_size,
        divisor=abs(q.step_divisor),
        statistic="range" if ranged else "absmax",
        zero="whole" if ranged else "none",
    )


def dense(q: Quantizer, *, whole_blocks: bool) -> st.SearchStrategy[Array]:
    """Draw multiples of 1/128 in [-8, 8), all different in a block more or less. Shrinks in shape alone.

    Half of the rows are multiples of 8, where kernels change to vectors, and mostly no multiple of the block.
    """
    size = q.block_size or 32
    columns = st.integers(1, 2 * size + 1) | st.integers(1, max(size // 4, 2)).map(lambda n: 8 * n)

    def drawn(rows: int, width: int, seed: int) -> Array:
        width += -width % (q.block_size or 1) if whole_blocks else 0
        return (rng_for(seed).integers(-1024, 1024, (rows, width)) / 128).astype(np.float32)

    return st.builds(drawn, st.integers(1, 3), columns, st.integers(0, 2**16))


def weights_for(contract: Contract, q: Quantizer) -> st.SearchStrategy[Array]:
    """Draw the weights that a contract is tried on. Shrinks to one 0, or to one block of zeros."""
    whole = q.whole_blocks or contract.whole_blocks
    if contract.weights == "ties":
        drawn = tensors(drawn_as(q), kinds=("ties",), whole_blocks=whole)
    else:
        drawn = tensors(drawn_as(q), whole_blocks=whole) | dense(q, whole_blocks=whole)
    if contract.weights != "normal":
        return drawn.map(lambda w: np.clip(w, -q.largest, q.largest))
    margin = 2.0 ** max(POWERS)
    low, high = q.smallest * margin, min(q.largest, NORMAL) / margin
    return drawn.map(lambda w: np.where(np.abs(w) < low, 0, np.clip(w, -high, high)).astype(w.dtype))


def cut(w: Array, fails: Callable[[Array], bool], *, unit: int) -> Array:
    """Leave out all rows, and all `unit` columns that a block may start with, without which the weights still fail."""
    for axis, size in ((0, 1), (1, unit)):
        for start in reversed(range(0, w.shape[axis], size)):
            smaller = np.delete(w, np.s_[start : start + size], axis=axis)
            if smaller.size and fails(smaller):
                w = smaller
    return w


def simplified(w: Array, fails: Callable[[Array], bool]) -> Array:
    """Set weights to 0, or else round them to integers, one by one, as long as they still fail."""
    for simpler_value in (np.zeros_like, np.rint):
        shrunk = True
        while shrunk:
            shrunk = False
            for i in np.flatnonzero(w.ravel() != simpler_value(w).ravel()):
                simpler = w.copy()
                simpler.ravel()[i] = simpler_value(w.ravel()[i])
                if fails(simpler):
                    w, shrunk = simpler, True
    return w


def judge(name: str, q: Quantizer, *, examples: int, seed: int) -> Verdict:
    """Look for weights that break one contract, and shrink them: by Hypothesis, then by leaving out and by zeros.

    Args:
        name: a key of `CONTRACTS`; the claims of `q` imply it.
        q: the quantizer.
        examples: weights to try.
        seed: seed of the search.
    """
    contract, tried, started = CONTRACTS[name], 0, time.perf_counter()

    def fails(w: Array) -> bool:
        nonlocal tried
        tried += 1
        return violation(contract, q, w) is not None

    def done(found: Counterexample | None) -> Verdict:
        outcome: Outcome = "fails" if found else "holds"
        return Verdict(name, outcome, tried, seed, found, time.perf_counter() - started)

    options = settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate, Phase.shrink])
    try:
        w = find(weights_for(contract, q), fails, settings=options, random=Random(seed))
    except NoSuchExample:
        return done(None)
    except Flaky:
        words = "the same weights pass and fail: what it gives depends on what came before"
        return done(Counterexample(np.zeros((0, 0), np.float32), None, words))
    unit = (q.block_size or 1) if q.whole_blocks or contract.whole_blocks else 1
    w = simplified(cut(w, fails, unit=unit), fails)
    return done(violation(contract, q, cut(w, fails, unit=unit)))


def seed_of(name: str, seed: int) -> int:
    """Return the seed of one contract's search."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")


def tried(q: Quantizer) -> list[str]:
    """List the contracts that the claims imply, in the order in which they are tried."""
    return [name for name, contract in CONTRACTS.items() if contract.applies(q)]


def verify(
    q: Quantizer, *, profile: str = "dev", seed: int | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Try every contract that the claims imply. What `unforgotten verify --quantizer --json` prints.

    Args:
        q: the quantizer.
        profile: a key of `EXAMPLES`. "ci" has seed 0.
        seed: seed that repeats an earlier search.
        progress: listener that is told each of the contracts `tried`.

    Raises:
        ValueError: no such profile.
    """
    if profile not in EXAMPLES:
        raise ValueError(f"profile must be one of {', '.join(EXAMPLES)}, got profile={profile!r}")
    if seed is None:
        seed = 0 if profile == "ci" else secrets.randbits(32)
    verdicts: list[Verdict] = []
    for name, contract in CONTRACTS.items():
        broken = any(v.outcome == "fails" and v.contract in BASIC for v in verdicts)
        if not contract.applies(q):
            verdicts.append(Verdict(name, "not claimed"))
        elif broken and name not in BASIC:
            verdicts.append(Verdict(name, "not judged"))
        else:
            with progress.stage(name):
                found = judge(name, q, examples=EXAMPLES[profile], seed=seed_of(name, seed))
            verdicts.append(found)
    return {
        "schema": SCHEMA,
        "quantizer": q.name,
        "profile": profile,
        "seed": seed,
        "verdict": "fails" if any(v.outcome == "fails" for v in verdicts) else "holds",
        "contracts": [as_object(v) for v in verdicts],
    }
