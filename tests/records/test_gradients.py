"""The file of recorded gradients: what is written is read, and anything else is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unforgotten.records.gradients import SETTINGS, Gradients, read_gradients, write_gradients

BLOCKS, STEPS = 16, 10


def recorded() -> Gradients:
    random = np.random.default_rng(0)
    w = random.normal(size=(BLOCKS, 64)).astype(np.float32)
    gradients = random.normal(size=(STEPS, BLOCKS, 64)).astype(np.float32)
    return Gradients(
        w, np.abs(w).max(1), gradients, np.linspace(0, 1e-5, STEPS, dtype=np.float64), {**SETTINGS, "beta2": 0.95}
    )


def arrays() -> dict[str, Any]:
    found = recorded()
    return {"weights": found.weights, "row_absmax": found.row_absmax, "gradients": found.gradients, "lr": found.lr}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_gradients(tmp_path / "g.npz", recorded())
    found = read_gradients(tmp_path / "g.npz")
    for name in arrays():
        assert np.array_equal(getattr(found, name), getattr(recorded(), name))
        assert getattr(found, name).dtype == getattr(recorded(), name).dtype
    assert found.settings == recorded().settings


def test_settings_that_are_not_there_are_torchs(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", **arrays())
    assert read_gradients(tmp_path / "g.npz").settings == SETTINGS


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no weights": ({"weights": None}, "must have an array weights, got gradients, lr, row_absmax"),
    "flat": ({"weights": np.zeros(8)}, r"weights must be of floats with 2 axes, got float64 (8,)"),
    "whole numbers": ({"lr": np.ones(STEPS, int)}, "lr must be of floats with 1 axes, got int64 (10,)"),
    "nan": ({"lr": np.full(STEPS, np.nan)}, "lr must be finite, got nan or inf"),
    "blocks of 32": ({"weights": np.zeros((BLOCKS, 32))}, "weights must be of shape (16, 64), got (16, 32)"),
    "other steps": ({"lr": np.ones(STEPS + 1)}, "gradients must be of shape (11, 16, 64), got (10, 16, 64)"),
    "lr below 0": ({"lr": np.linspace(-1, 1, STEPS)}, "lr must be at least 0 and not all 0, got"),
    "no lr": ({"lr": np.zeros(STEPS)}, "lr must be at least 0 and not all 0, got"),
    "small rows": ({"row_absmax": np.zeros(BLOCKS)}, "row_absmax must be at least the largest magnitude of its block"),
    "a setting of two": ({"beta1": np.zeros(2)}, "beta1 must be a number, got float64 (2,)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_arrays_are_refused(kind: str, tmp_path: Path) -> None:
    changed, words = BAD[kind]
    path = tmp_path / "g.npz"
    np.savez(path, **{name: array for name, array in (arrays() | changed).items() if array is not None})
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {words}')}") as caught:
        read_gradients(path)
    assert str(caught.value).isprintable()


def test_few_steps_or_blocks_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", **arrays() | {"lr": np.ones(1), "gradients": arrays()["gradients"][:1]})
    with pytest.raises(ValueError, match=r"must hold at least 16 blocks and 10 steps, got 16 and 1$"):
        read_gradients(tmp_path / "g.npz")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and no more", b"text", b"\x80\x04K\x01."])
def test_other_files_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: must be an .npz of recorded gradients, got "):
        read_gradients(path)
