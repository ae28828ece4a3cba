"""What one method runs with, after its own settings have replaced the common ones."""

from __future__ import annotations

from dataclasses import dataclass

from unforgotten.experiments.config import Autocast, MethodConfig, Products, Storage, UnlearningConfig


@dataclass(frozen=True)
class Settings:
    """What one method runs with, after its own settings have replaced the common ones."""

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


def settings_of(config: UnlearningConfig, own: MethodConfig, storage: Storage, products: Products) -> Settings:
    """Return the common settings of this storage arm, with the method's own in their place."""
    return Settings(
        lr=own.lr or config.lr[storage],
        alpha=config.alpha if own.alpha is None else own.alpha,
        beta=config.beta,
        batch=config.batch,
        retain_batch=config.retain_batch,
        max_grad_norm=config.max_grad_norm,
        stop_forget_loss=own.stop_forget_loss or config.stop_forget_loss,
        check_every=config.check_every,
        max_steps=own.max_steps or config.max_steps[storage],
        autocast=config.autocast if storage == "fp32" else "none",
        products=products,
    )
