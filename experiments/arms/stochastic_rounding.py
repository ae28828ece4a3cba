"""AdamW whose results are rounded to bfloat16 at random: up or down, so that the mean is what was computed.

To nearest, a weight keeps its value for ever where a step is below half its spacing, the dead zone of the arm "bf16". The
second moment stalls in the same way: it should move by a thousandth of the new square at a step, and bfloat16's half spacing
is two to four thousandths, so it never falls, and under a constant gradient it stops growing at half the square.
Both are rounded at random here, the first moment too, and nothing is kept in float32.

The design is that of torchao's `_AdamW(bf16_stochastic_round=True)` (arXiv 2010.06192), which computes in float32 from
bfloat16 state and rounds the parameters at random; its moments are rounded to nearest, ours are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.999)  # those and EPS of torch.optim.AdamW
EPS = 1e-8
LOW = 1 << 16  # bfloat16 is the upper half of the bits of float32


def round_at_random(x: Tensor, bits: Tensor) -> Tensor:
    """Round float32 to a bfloat16 neighbour: E[result] = x, over uniform `bits`.

    The lower half of x's bits, of 2^16, is how far x lies from the neighbour towards 0 to the other; adding the bits
    carries into the upper half with that probability. What bfloat16 holds is kept, infinity and nan too. Beyond the
    largest finite bfloat16 the other neighbour is infinity.

    Args:
        x: float32 numbers.
        bits: random int32 numbers, uniform on 0 … 2^16 - 1, of the shape of x.
    """
    lifted = (x.view(torch.int32) + bits).bitwise_and_(-LOW).view(torch.float32)
    return torch.where(x.isfinite(), lifted, x).to(torch.bfloat16)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW without weight decay: bfloat16 parameters and moments, float32 arithmetic, random rounding.

    m' = m + (1 - b1) (g - m), v' = v + (1 - b2) (g^2 - v), w' = w - lr (m' / c1) / (sqrt(v' / c2) + eps), with the bias
    corrections c = 1 - b^step; m', v' and w' are rounded, after all three are computed.

    Args:
        parameters: bfloat16 parameters.
        lr: learning rate.
        seed: seed of the random bits.

    Raises:
        ValueError: a parameter has another dtype.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, seed: int) -> None:
        super().__init__(parameters, {"lr": lr})
        self._generator = torch.Generator(self._parameters()[0].device).manual_seed(seed)
        for parameter in self._parameters():
            if parameter.dtype != torch.bfloat16:
                raise ValueError(f"parameters must be torch.bfloat16, got {parameter.dtype}")

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no loss to return
        """Move every parameter that has a gradient."""
        for parameter in self._parameters():
            if parameter.grad is not None:
                self._move(parameter, parameter.grad.float())

    def _move(self, w: Tensor, grad: Tensor) -> None:
        state: dict[str, Any] = self.state[w]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(w), exp_avg_sq=torch.zeros_like(w))
        state["step"] += 1
        first, second = (1 - beta ** state["step"] for beta in BETAS)
        mean = state["exp_avg"].float().lerp_(grad, 1 - BETAS[0])
        square = state["exp_avg_sq"].float().lerp_(grad.square_(), 1 - BETAS[1])
        spread = (square / second).sqrt_().add_(EPS)
        moved = w.float().addcdiv_(mean, spread, value=-self.param_groups[0]["lr"] / first)
        for kept, computed in ((state["exp_avg"], mean), (state["exp_avg_sq"], square), (w, moved)):
            kept.copy_(round_at_random(computed, self._bits(computed)))

    def _bits(self, x: Tensor) -> Tensor:
        return torch.randint(LOW, x.shape, dtype=torch.int32, device=x.device, generator=self._generator)
