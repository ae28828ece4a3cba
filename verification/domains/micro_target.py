"""A micro target that knows its documents, and what a method is given to make it forget half of them."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from unforgotten.experiments.arms.arithmetic import Arithmetic
from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.compute.settings import DEFAULT, ComputeConfig
from unforgotten.experiments.config import BaseConfig, Storage, TrainingConfig, UnlearningConfig
from unforgotten.experiments.methods.method import Task
from unforgotten.experiments.methods.reference import make_reference
from unforgotten.experiments.models.bases.llama import TINY
from unforgotten.experiments.models.training import train

FORGET, RETAIN = slice(0, 4), slice(4, 8)
VOCABULARY = 300
RULES: dict[str, Any] = {"methods": {}, "batch": 2, "retain_batch": 2, "stop_forget_loss": 1e9}


@cache
def micro_documents() -> list[list[int]]:
    """Return eight documents of 12 to 19 tokens; each begins with a token of its own."""
    rng = np.random.default_rng(0)
    return [[1, 280 + k, *rng.integers(3, 280, 10 + k).tolist()] for k in range(8)]


def micro_model() -> PreTrainedModel:
    """Return a Llama of two layers of random weights."""
    base = BaseConfig(vocabulary=VOCABULARY, width=64, feed_forward=64, layers=2, heads=2, positions=64)
    return TINY.model(base, seed=0)


@cache
def _trained() -> PreTrainedModel:
    torch.set_num_threads(1)
    model = micro_model()
    settings = TrainingConfig(lr=0.003, batch=8, steps=60)
    train(model, micro_documents(), settings, seed=0, progress=_silent, products="native")
    return model


def micro_target() -> PreTrainedModel:
    """Return a Llama of two layers that has learned all documents; a copy."""
    return copy.deepcopy(_trained())


def micro_task(
    storage: Storage = "fp32", *, max_steps: int = 4, lr: float = 1e-3, compute: ComputeConfig = DEFAULT, **common: Any
) -> Task:
    """Return the task of a storage arm: to forget four documents and keep four.

    Args:
        storage: storage arm.
        max_steps: steps to take; no other rule stops.
        lr: learning rate.
        compute: settings of memory.
        common: settings of `UnlearningConfig`, in place of those of RULES.
    """
    config = UnlearningConfig(**{**RULES, "lr": {storage: lr}, "max_steps": {storage: max_steps}, **common})
    arithmetic = Arithmetic(KEPT[storage].dtype, config.autocast if storage == "fp32" else "none", "native")
    forget, retain = micro_documents()[FORGET], micro_documents()[RETAIN]
    return Task(
        forget=forget,
        retain=retain,
        watched=forget,
        common=config,
        storage=storage,
        arithmetic=arithmetic,
        reference=lambda model: make_reference(model, (forget, retain), 4, arithmetic),
        seed=3,
        progress=_silent,
        compute=compute,
    )


def _silent(step: int, steps: int, said: str) -> None:
    pass
