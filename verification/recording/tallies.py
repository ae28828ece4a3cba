"""What a run of the suite tried: distinct configurations, tightness of bounds, violations and time, claim by claim.

`pytest verification --verification-report DIR` writes it; without that option `record` does nothing.

Takes the configurations that tests `record`; gives an object for JSON, claim by claim.

>>> fingerprint(("int4-g64", 1.0)) == fingerprint(("int4-g64", 1.0))
True
"""

from __future__ import annotations

import platform
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.claims import CLAIMS, PROOFS, load_claims
from unforgotten.theory.formats.description import Format
from unforgotten.verification.chance import COUNTS, FALSE_ALARM, FAMILY_FALSE_ALARM, sample_seed
from unforgotten.verification.recording.recorded import SCHEMA

DEFINITION = (
    "A configuration is one distinct input of a claim: what Hypothesis drew for one example (a format, weights, an "
    "update, other parameters), one case of a parametrized test, or one row of a vectorized batch, which is a format "
    "with a block of weights and an update of its own. Inputs are compared by a 64-bit hash of their content, over "
    "all tests of the claim, so that a repeated one counts once. The single weights of a block are not counted, nor "
    "are the samples of a statistical test. Values of a dtype that were gone through one by one, none left out, are "
    "counted apart, as exhaustive cases."
)
TEST = re.compile(r"::test_([a-zA-Z0-9_]+?)__\w+")
PROOF = re.compile(r"::test_proofs__hold\[([\w.]+)\]")
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Tally:
    """What one claim has seen."""

    single: set[int] = field(default_factory=set)
    batches: list[NDArray[np.uint64]] = field(default_factory=list)
    exhaustive: dict[int, int] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    ratio: float | None = None
    at: str = ""
    seconds: float = 0.0

    def configurations(self) -> int:
        """Count the distinct configurations."""
        single = np.fromiter(self.single, np.uint64, len(self.single))
        return int(np.unique(np.concatenate([single, *self.batches])).size)

    def tighten(self, ratio: float, at: str) -> None:
        """Keep the largest ratio and where it was seen."""
        if self.ratio is None or ratio > self.ratio:
            self.ratio, self.at = ratio, at


class Report:
    """Tallies by the name of the function that states the claim, or of what else a test is named for."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.proofs: dict[str, str] = {}  # "holds", or how the test of it ended
        self.records = 0

    def of(self, name: str) -> Tally:
        """Return the tally of a name."""
        return self.tallies.setdefault(name, Tally())


ACTIVE: list[Report] = []  # of the run, if one was asked for


def record(
    claim: str, *configuration: object, ratio: float | None = None, rows: Sequence[Any] = (), exhaustive: int = 0
) -> None:
    """Note a configuration of a claim, and how near a bound it came.

    Args:
        claim: name of the function that states it.
        configuration: values that were tried; with `rows` those that all have in common, as the format.
        ratio: actual / bound where the claim is a bound: 1 is attained, more is a violation.
        rows: arrays whose first axis is that of a batch: each row is a configuration.
        exhaustive: number of values of a dtype that were gone through; counted apart.

    Raises:
        ValueError: no claim has that name, or a part of the configuration cannot be told from another by its content.
    """
    if not ACTIVE:
        return
    if claim not in claim_names():
        raise ValueError(f"claim must be the function of a claim, got claim={claim!r}")
    tally = ACTIVE[-1].of(claim)
    ACTIVE[-1].records += 1
    common = fingerprint(configuration)
    if common is None:
        raise ValueError(f"configuration must be plain values, got {configuration!r}")
    if exhaustive:
        tally.exhaustive[common] = exhaustive
    elif len(rows):
        tally.batches.append(fingerprints(rows, common))
    else:
        tally.single.add(common)
    if ratio is not None:
        tally.tighten(ratio, " ".join(_short(x) for x in configuration))


def _short(value: object) -> str:
    """Shorten a value to what a reader wants: names of formats, shapes of arrays."""
    if isinstance(value, np.ndarray):
        return f"array{value.shape}"
    return str(getattr(value, "name", value))[:40]


def claim_names() -> dict[str, str]:
    """Map the bare name of each claim's function to its full name."""
    return {function.rpartition(".")[2]: function for function in load_claims()}


def fingerprint(value: object) -> int | None:
    """Return 64 bits of the content of a value; None where an object's content is not known."""
    digest = blake2b(digest_size=8)
    return int.from_bytes(digest.digest(), "little") if _feed(digest, value) else None


def _feed(digest: Any, value: object) -> bool:
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Format):
        digest.update(f"format {value.name}".encode())
    elif isinstance(value, float):
        digest.update(struct.pack("<d", value))
    elif value is None or isinstance(value, str | int | bool | complex | bytes | np.generic):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, Mapping):
        return all(_feed(digest, part) for part in value.items())
    elif isinstance(value, Iterable) and isinstance(value, Sequence | set | frozenset):
        digest.update(f"{len(value)}[".encode())
        return all(_feed(digest, part) for part in value)
    elif hasattr(value, "__dataclass_fields__"):
        return _feed(digest, (type(value).__name__, vars(value)))
    else:
        return False
    return True


def fingerprints(rows: Sequence[NDArray[Any]], common: int) -> NDArray[np.uint64]:
    """Return 64 bits for each row of a batch, (n,): a polynomial in the bits of its numbers, mixed at every step."""
    columns = [np.ascontiguousarray(x).reshape(len(x), -1) for x in rows]
    hashed: NDArray[np.uint64] = np.full(len(columns[0]), common, np.uint64)
    with np.errstate(over="ignore"):
        for part in columns:
            bits = part.view(f"u{part.dtype.itemsize}").astype(np.uint64)
            for i in range(bits.shape[1]):
                hashed = (hashed ^ bits[:, i]) * _ODD
                hashed ^= hashed >> np.uint64(29)
    return hashed


def as_object(report: Report, profile: str, seconds: float) -> dict[str, Any]:
    """Return the object of `verification-report.json`."""
    claims = claim_names()
    rows = [
        {
            "id": (c := CLAIMS[claims[name]]).id,
            "kind": c.kind,
            "function": c.function,
            "statement": c.statement,
            **_counts(report.of(name)),
        }
        for name in claims
    ]
    others = [{"name": name, **_counts(tally)} for name, tally in sorted(report.tallies.items()) if name not in claims]
    comparisons = COUNTS["comparisons"]
    return {
        "schema": SCHEMA,
        "profile": profile,
        "sample_seed": sample_seed(),
        "definition": DEFINITION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "seconds": round(seconds, 1),
        "configurations": sum(r["configurations"] for r in rows),
        "exhaustive_cases": sum(r["exhaustive_cases"] for r in rows),
        "violations": sum(r["violations"] for r in (*rows, *others)),
        "statistics": {
            "comparisons": comparisons,
            "false_alarm_each": FALSE_ALARM,
            "false_alarm_of_all": comparisons * FALSE_ALARM,
            "allowed": FAMILY_FALSE_ALARM,
        },
        "claims": sorted(rows, key=lambda r: (r["id"][0], int(r["id"][1:]), r["function"])),
        "others": others,
        "proofs": {
            function: {
                "claim": p.claim,
                "method": p.method,
                "domain": p.domain,
                "statement": p.statement,
                "verdict": report.proofs[function],
            }
            for function, p in sorted(PROOFS.items())
            if function in report.proofs
        },
    }


def _counts(tally: Tally) -> dict[str, Any]:
    return {
        "configurations": tally.configurations(),
        "exhaustive_cases": sum(tally.exhaustive.values()),
        "tests": dict(sorted(tally.outcomes.items())),
        "violations": tally.outcomes["failed"],
        "tightness": None if tally.ratio is None else {"ratio": tally.ratio, "at": tally.at},
        "seconds": round(tally.seconds, 3),
    }
