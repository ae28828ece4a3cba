"""The optimizer of a storage arm: what moves the parameters, in the dtype in which the arm keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from unforgotten.experiments.arms.arm import KEPT
from unforgotten.experiments.arms.rounding import rounded
from unforgotten.experiments.arms.stochastic_rounding import StochasticAdamW
from unforgotten.experiments.compute.settings import AdamW
from unforgotten.records.extras import need

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unforgotten.experiments.config import Storage
    from unforgotten.experiments.methods.method import Task
    from unforgotten.experiments.methods.settings import Settings

Rule = Literal["sgd", "sign"]
DIRECTIONS: Mapping[Rule, Callable[[Tensor], Tensor]] = {"sgd": lambda g: g, "sign": torch.sign}


class StatelessDescent(torch.optim.Optimizer):
    """SGD without momentum, or its sign: w' = w - lr g, or w - lr sign(g), in float32, rounded once as the arm rounds.

    Args:
        parameters: parameters in the arm's dtype.
        rule: "sgd" or "sign".
        lr: learning rate.
        storage: arm.
        seed: seed of the random bits, of an arm that rounds so.
    """

    def __init__(self, parameters: Iterable[Tensor], rule: Rule, lr: float, storage: Storage, seed: int) -> None:
        super().__init__(parameters, {"lr": lr})
        self._direction = DIRECTIONS[rule]
        self._storage: Storage = storage
        self._generator = torch.Generator(self.param_groups[0]["params"][0].device).manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no loss to return
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    moved = w.float().add(self._direction(w.grad.float()), alpha=-group["lr"])
                    w.copy_(rounded(moved, self._storage, self._generator))


class ClampedAdamW(torch.optim.AdamW):
    """torch's AdamW without weight decay, each of whose steps is at most lr: m / sqrt(v) may reach 7 where a gradient is new.

    A step of at most lr is torch's own, bit by bit; a larger one is cut to lr in float32 and rounded once to the parameter's dtype.

    Args:
        parameters: parameters in the arm's dtype.
        lr: learning rate.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, lr=lr, weight_decay=0.0, foreach=False)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no loss to return
        """Move every parameter that has a gradient."""
        before = [(w, w.clone(), group) for group in self.param_groups for w in group["params"] if w.grad is not None]
        super().step()
        for w, old, group in before:
            lr, step = group["lr"], self._step_of(w, group)
            cut = (old.float() - step.clamp(-lr, lr)).to(w.dtype)
            w.copy_(torch.where(step.abs() > lr, cut, w))

    def _step_of(self, w: Tensor, group: Mapping[str, Any]) -> Tensor:
        """Return what AdamW takes off a parameter, from its moments after the step, in float32."""
        state, (first, second) = self.state[w], group["betas"]
        corrected = [1 - beta ** float(state["step"]) for beta in (first, second)]
        spread = (state["exp_avg_sq"].sqrt() / math.sqrt(corrected[1])).add_(group["eps"])
        taken: Tensor = group["lr"] / corrected[0] * (state["exp_avg"].float() / spread.float())
        return taken


def make_optimizer(model: PreTrainedModel, settings: Settings, task: Task) -> torch.optim.Optimizer:
    """Return the optimizer of the settings without weight decay; where the arm rounds stochastically, so does it.

    Args:
        model: model in the arm's dtype; what needs no gradient is left out.
        settings: settings with the optimizer and the learning rate.
        task: task with the arm, and the seed of its random bits.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    seed = task.seed + 2  # seed, seed + 1: the documents
    if settings.optimizer == "adamw-clamped":
        return _clamped(parameters, settings.lr, task)
    if settings.optimizer != "adamw":
        return StatelessDescent(parameters, settings.optimizer, settings.lr, task.storage, seed)
    if KEPT[task.storage].rounding == "stochastic":
        return StochasticAdamW(parameters, settings.lr, seed)
    return adamw(parameters, settings.lr, task.compute.adamw)


def _clamped(parameters: Sequence[Tensor], lr: float, task: Task) -> ClampedAdamW:
    if KEPT[task.storage].rounding == "stochastic":
        raise ValueError(f"optimizer adamw-clamped must round to nearest, in fp32 or bf16, got the arm {task.storage}")
    if task.compute.adamw != "plain":
        raise ValueError(f"optimizer adamw-clamped must have compute.adamw plain, got {task.compute.adamw}")
    return ClampedAdamW(parameters, lr)


def adamw(parameters: Sequence[Tensor], lr: float, kind: AdamW) -> torch.optim.Optimizer:
    """Return AdamW without weight decay, of one of the implementations of `compute.adamw`.

    Raises:
        ValueError: bitsandbytes is missing, or its moments would be kept otherwise than the arm says.
    """
    if kind != "paged":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True if kind == "fused" else None)
    need("unforgotten[quantizers]", "bitsandbytes")
    kept = {(p.device.type, str(p.dtype).removeprefix("torch.")) for p in parameters}
    if kept != {("cuda", "float32")}:
        rule = "its moments are float32 and in memory that a GPU shares"
        raise ValueError(f"compute.adamw paged must have float32 parameters on cuda, {rule}, got {sorted(kept)}")
    paged: torch.optim.Optimizer = import_module("bitsandbytes.optim").PagedAdamW32bit(
        parameters, lr=lr, weight_decay=0.0
    )
    return paged
