"""The base pair that public reports are tried on: an embedding, one matrix and a norm; unlearning adds 1e-3 to the matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

Tensors = Mapping[str, NDArray[Any] | None]
Pair = Callable[..., tuple[Path, Path]]
MATRIX = "model.layers.0.self_attn.q_proj.weight"


def base_tensors() -> dict[str, NDArray[Any]]:
    """The target of the base pair."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (8, 16), MATRIX: (16, 16), "model.norm.weight": (16,)}
    return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def report_pair(tmp_path: Path) -> Pair:
    """Writes the base pair; what is given to a side is added to it, and None takes a tensor away."""

    def written(
        target: Tensors | None = None,
        unlearned: Tensors | None = None,
        *,
        both: Tensors | None = None,
        moved: bool = True,
        config: object = None,
    ) -> tuple[Path, Path]:
        for name, own in (("t", target), ("u", unlearned)):
            content: dict[str, NDArray[Any] | None] = {**base_tensors()}
            if name == "u" and moved:
                content[MATRIX] = base_tensors()[MATRIX] + np.float32(1e-3)
            content |= {**(both or {}), **(own or {})}
            (tmp_path / name).mkdir()
            kept = {n: np.ascontiguousarray(w) for n, w in content.items() if w is not None}
            save_file(kept, tmp_path / name / "model.safetensors")
            if config is not None:
                (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / "t", tmp_path / "u"

    return written
