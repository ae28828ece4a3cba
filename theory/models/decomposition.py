"""T14: the lost effect of an update, split into gating and base shift."""

from __future__ import annotations

from typing import NamedTuple

from unforgotten.theory.claims import claim


class LostEffect(NamedTuple):
    """`total = gating + base_shift`: what quantization took from the effect of the update."""

    total: float
    gating: float
    base_shift: float


@claim("T14", kind="exact", source="Shapley 1953, for two players")
def lost_effect(*, w: float, w_new: float, q: float, q_new: float, w_plus_d: float, q_plus_delta: float) -> LostEffect:
    """[F(w') - F(w)] - [F(Q(w')) - F(Q(w))] = gating + base shift, averaged over the two orders of replacement.

    Gating replaces delta by D, the base shift replaces w by Q(w). Arguments are values of F: at w, w', Q(w), Q(w'),
    at the target with the surviving update w + D, and at the quantized target with the whole update Q(w) + delta.
    """
    whole, surviving = w_new - w, w_plus_d - w
    whole_on_q, surviving_on_q = q_plus_delta - q, q_new - q
    gating = ((whole - surviving) + (whole_on_q - surviving_on_q)) / 2
    base_shift = ((whole - whole_on_q) + (surviving - surviving_on_q)) / 2
    return LostEffect(whole - surviving_on_q, gating, base_shift)
