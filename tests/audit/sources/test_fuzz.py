"""Readers under hostile bytes: a ValueError or OSError of one line, or a result; never anything else, nor a read outside.

Mutations are of bytes and of structure. Files are in memory, and a range outside of one fails the test, so what is
allocated is bounded by the file. `-m nightly` runs 210,000 cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unforgotten.audit.sources.checkpoint import read_index
from unforgotten.audit.sources.gguf import gguf_of
from unforgotten.audit.sources.matching.comparable import comparable
from unforgotten.audit.sources.pairing import pair
from unforgotten.audit.sources.safetensors_header import read_header
from unforgotten.verification.domains.hostile_adapters import adapters, check_adapter, opened_adapter
from unforgotten.verification.domains.hostile_files import (
    FILE,
    Memory,
    check_gguf,
    check_index,
    check_safetensors,
    gguf_files,
    indexes,
    only_refusals,
    safetensors_files,
)
from unforgotten.verification.domains.hostile_layers import (
    SETTINGS,
    _decode,
    _opened,
    check_layer,
    check_pair,
    check_settings,
    layers,
    pairs,
    settings_files,
)
from unforgotten.verification.profiles import SLOW_STRATEGIES

CHECKS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "safetensors": (check_safetensors, safetensors_files()),
    "index": (check_index, indexes()),
    "gguf": (check_gguf, gguf_files()),
    "settings": (check_settings, settings_files()),
    "pair": (check_pair, pairs()),
    "layer": (check_layer, layers()),
    "adapter": (check_adapter, adapters()),
}
FEW, MANY = 300, 30_000


def fuzz(kind: str, cases: int) -> None:
    check, strategy = CHECKS[kind]
    ran = 0

    def counted(case: Any) -> None:
        nonlocal ran
        ran += 1
        check(case)

    options = settings(max_examples=cases, deadline=None, database=None, suppress_health_check=SLOW_STRATEGIES)
    options(given(strategy)(counted))()
    assert ran >= cases


@pytest.mark.parametrize("kind", CHECKS)
def test_only_refusals(kind: str) -> None:
    fuzz(kind, FEW)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", CHECKS)
def test_only_refusals_in_210000_cases(kind: str) -> None:
    fuzz(kind, MANY)


@pytest.mark.parametrize("kind", CHECKS)
def test_both_outcomes_occur(kind: str) -> None:
    """The fuzz would show nothing if every case were refused at its first byte, or none.

    Of settings 6 % are accepted (18 of 300), so fewer than 1 % would be: less often than once in 10^5.
    """
    outcomes: list[bool] = []
    _, strategy = CHECKS[kind]

    def outcome(case: Any) -> None:
        outcomes.append(_is_refused(kind, case))

    options = settings(
        max_examples=FEW, deadline=None, database=None, derandomize=True, suppress_health_check=SLOW_STRATEGIES
    )
    options(given(strategy)(outcome))()
    assert len(outcomes) / 10 < sum(outcomes) < len(outcomes) * 0.99


def _is_refused(kind: str, case: Any) -> bool:
    acts: dict[str, Callable[[], object]] = {
        "safetensors": lambda: read_header(Memory(case)),
        "index": lambda: read_index(FILE, case[0]),
        "gguf": lambda: gguf_of(Memory(case)),
        "settings": lambda: SETTINGS[case[0]][1](case[1]),
        "pair": lambda: pair(*comparable(*(_opened(content) for content in case))),
        "layer": lambda: _decode(case),
        "adapter": lambda: opened_adapter(case),
    }
    with np.errstate(all="ignore"):
        return only_refusals(acts[kind])
