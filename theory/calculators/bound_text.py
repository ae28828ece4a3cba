"""The lines that `unforgotten bound` prints."""

from __future__ import annotations

import math

from unforgotten.theory.calculators.bound import LR_RANGE, Answer


def lines(answer: Answer, wanted: bool) -> list[str]:
    """Return an answer in words; `wanted` says whether a smallest lr was asked for."""
    q = answer.question
    zone = "none: every weight can move" if answer.dead_zone is None else f"|w| > {answer.dead_zone:.4g} stands still"
    rows = [
        ("steps", _steps(q.snr)),
        ("dead zone", f"{zone}; no gradients move |w| > {answer.certain_dead_zone:.4g} if rounded to nearest"),
        ("moved", f"{100 * answer.moved:.2f} % of the weights"),
        ("rms update", f"{answer.rms_update:.3g} ({answer.rms_update / q.std:.3g} std)"),
        ("gain", _number(answer.gain)),
        ("cosine", _number(answer.cosine)),
        ("flips", f"{100 * answer.flips:.3g} % of the codes"),
    ]
    if wanted:
        rows.append(("smallest lr", _smallest(answer)))
    return [f"{name + ':':13}{text}" for name, text in rows]


def _smallest(answer: Answer) -> str:
    if answer.smallest_lr is None:
        return "none is found"
    lowest = LR_RANGE[0] * answer.question.std
    end = ", or less: none below it was looked at" if answer.smallest_lr <= lowest else ""
    return f"{answer.smallest_lr:.3g}{end}"


def _steps(snr: float) -> str:
    if math.isinf(snr):
        return "nominal: each is lr, always with the same sign"
    return f"stationary gradients, signal-to-noise ratios of spread {snr:g}"


def _number(x: float | None) -> str:
    return "undefined: nothing moves or nothing survives" if x is None else f"{x:.4f}"
