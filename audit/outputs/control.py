"""The control of a security standard that an audit is evidence for, and what of it this one covers."""

from __future__ import annotations

from typing import Literal, TypedDict

from unforgotten.audit.verdict.legs import BehaviourLeg, OutputLeg

STANDARD = "OWASP AISVS 1.0"
CONTROL = "C3.2.2"
ASKS = "a model that was quantized after training is evaluated again, by the same tests, before it is deployed"


class Control(TypedDict):
    """A control, what it asks for, and what of it the audit covers."""

    standard: str
    control: str
    asks: str
    covers: Literal["weights", "output", "behaviour"]
    sentence: str


def control_of(output: OutputLeg | None, behaviour: BehaviourLeg | None) -> Control:
    """Return the control with the furthest leg that was measured; weights alone evaluate no model."""
    if behaviour is not None:
        what = "memory, knowledge and privacy of the forget split and knowledge of the retain split were measured again"
        return _control("behaviour", f"{what} on the quantized models; other safety tests were not")
    if output is not None:
        return _control(
            "output", "likelihoods of the given texts were measured again on the quantized models; no answer was"
        )
    return _control("weights", "no model was evaluated: give --texts or --benchmark to cover it")


def _control(covers: Literal["weights", "output", "behaviour"], what: str) -> Control:
    sentence = f"{STANDARD} {CONTROL} ({ASKS}): {what}."
    return Control(standard=STANDARD, control=CONTROL, asks=ASKS, covers=covers, sentence=sentence)
