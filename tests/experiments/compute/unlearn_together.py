"""Unlearn the micro target as one of several processes, and save what the first of them holds: `unlearn_together.py OUT METHOD …`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unforgotten.experiments.compute.processes import leave, processes
from unforgotten.experiments.compute.settings import ComputeConfig
from unforgotten.experiments.config import TrainingConfig
from unforgotten.experiments.methods.registry import method_named
from unforgotten.experiments.models.training import train
from unforgotten.verification.domains.micro_target import micro_documents, micro_model, micro_task

STEPS = 3


class Teardown:
    """Aborts the process when its interpreter is torn down, as a thread of torch does now and then."""

    def __del__(self, abort: Callable[[], None] = os.abort) -> None:
        abort()


def unlearned(method: str, *, optimizer: str = "sgd", storage: Any = "fp32", **compute: Any) -> dict[str, torch.Tensor]:
    """Train a model of two layers on eight documents, let it forget four, and return its weights."""
    torch.set_num_threads(1)
    settings = ComputeConfig(**compute)
    model = micro_model()
    train(
        model,
        micro_documents(),
        TrainingConfig(lr=0.003, batch=5, steps=4),
        seed=0,
        progress=lambda *_: None,
        products="native",
        compute=settings,
    )
    lr = 0.5 if optimizer == "sgd" else 1e-3
    task = micro_task(storage, max_steps=STEPS, lr=lr, batch=3, retain_batch=3, optimizer=optimizer, compute=settings)
    outcome = method_named(method).unlearn(model, task, method_named(method).settings())
    assert outcome.steps == STEPS
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def of_case(case: str) -> dict[str, torch.Tensor]:
    """Return the weights of a case, METHOD,option=value,…"""
    name, _, rest = case.partition(",")
    parts = (part.split("=") for part in rest.split(",") if part)
    options: dict[str, Any] = {key: int(value) if value.isdigit() else value for key, value in parts}
    return unlearned(name, **options)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    teardown = Teardown()
    together = processes()
    found = {case: of_case(case) for case in sys.argv[2:]}
    if together.first:
        torch.save({"kind": together.kind, "count": together.count, "states": found}, Path(sys.argv[1]))
    together.wait()
    leave(0)
