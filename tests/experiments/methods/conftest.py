"""A micro target that knows its documents, and what a method is given to make it forget half of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

FORGET, RETAIN = slice(0, 4), slice(4, 8)
VOCABULARY = 300


@pytest.fixture(scope="session")
def documents() -> list[list[int]]:
    """Eight documents of 12 to 19 tokens; each begins with a token of its own."""
    rng = np.random.default_rng(0)
    return [[1, 280 + k, *rng.integers(3, 280, 10 + k).tolist()] for k in range(8)]


@pytest.fixture(scope="session")
def trained(documents: list[list[int]]) -> Any:
    """A Llama of two layers that has learned all documents."""
    torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")
    from unforgotten.experiments.config import BaseConfig, TrainingConfig
    from unforgotten.experiments.models.base import tiny_llama
    from unforgotten.experiments.models.training import train

    torch.set_num_threads(1)
    base = BaseConfig(vocabulary=VOCABULARY, width=64, feed_forward=64, layers=2, heads=2, positions=64)
    model = tiny_llama(base, seed=0)
    settings = TrainingConfig(lr=0.003, batch=8, steps=60)
    train(model, documents, settings, seed=0, progress=lambda *_: None, products="native")
    return model


@pytest.fixture
def target(trained: Any) -> Any:
    """A copy of the trained model."""
    return copy.deepcopy(trained)


@pytest.fixture
def task_of(documents: list[list[int]]) -> Callable[..., Any]:
    """Makes the task of a storage arm; what is given replaces common settings."""
    import torch

    from unforgotten.experiments.arms.arithmetic import Arithmetic
    from unforgotten.experiments.arms.arm import KEPT
    from unforgotten.experiments.config import UnlearningConfig
    from unforgotten.experiments.methods.method import Task
    from unforgotten.experiments.methods.reference import make_reference

    def make(storage: str = "fp32", **common: Any) -> Task:
        steps, lr = common.pop("max_steps", 4), common.pop("lr", 1e-3)
        settings: dict[str, Any] = {
            "methods": {},
            "lr": {storage: lr},
            "max_steps": {storage: steps},
            "batch": 2,
            "retain_batch": 2,
            "stop_forget_loss": 1e9,
        }
        config = UnlearningConfig(**(settings | common))
        arithmetic = Arithmetic(KEPT[storage].dtype, config.autocast if storage == "fp32" else "none", "native")  # type: ignore[index]
        forget, retain = documents[FORGET], documents[RETAIN]
        assert torch.get_num_threads() == 1
        return Task(
            forget=forget,
            retain=retain,
            watched=forget,
            common=config,
            storage=storage,  # type: ignore[arg-type]
            arithmetic=arithmetic,
            reference=lambda model: make_reference(model, (forget, retain), 4, arithmetic),
            seed=3,
            progress=lambda *_: None,
        )

    return make
