"""What a method made of losses runs with: the common settings of a run, and what a profile sets for it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field

from unforgotten.experiments.section import Section

if TYPE_CHECKING:
    from unforgotten.experiments.config import Autocast, Optimizer, Products
    from unforgotten.experiments.methods.method import Task


class MethodConfig(Section):
    """What one method may set differently from `UnlearningConfig`; None keeps the common value."""

    alpha: float | None = Field(default=None, ge=0)
    lr: float | None = Field(default=None, gt=0)
    stop_forget_loss: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Settings:
    """What one method runs with, after its own settings have replaced the common ones.

    Attributes:
        own: settings that this method alone has, by name.
    """

    lr: float
    alpha: float
    beta: float
    batch: int
    retain_batch: int
    max_grad_norm: float
    stop_forget_loss: float
    check_every: int
    max_steps: int
    autocast: Autocast
    products: Products
    optimizer: Optimizer = "adamw"
    own: Mapping[str, Any] = field(default_factory=dict)

    def recorded(self) -> dict[str, Any]:
        """Return all of them by name, as they are noted beside the model."""
        common = asdict(self)
        return {**common.pop("own"), **common}


def settings_of(task: Task, own: MethodConfig) -> Settings:
    """Return the common settings of this storage arm, with the method's own in their place."""
    common, storage = task.common, task.storage
    extra = own.model_dump(exclude=set(MethodConfig.model_fields))
    return Settings(
        lr=own.lr or common.lr[storage],
        alpha=common.alpha if own.alpha is None else own.alpha,
        beta=extra.pop("beta", common.beta),
        batch=common.batch,
        retain_batch=common.retain_batch,
        max_grad_norm=common.max_grad_norm,
        stop_forget_loss=own.stop_forget_loss or common.stop_forget_loss,
        check_every=common.check_every,
        max_steps=own.max_steps or common.max_steps[storage],
        autocast=task.arithmetic.autocast,
        products=task.arithmetic.products,
        optimizer=common.optimizer,
        own=extra,
    )
