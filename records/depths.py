"""The depth of an unlearned state: how far forgetting was wanted to go when its weights were kept.

The field `depth` of a row holds it: "0.6" for a forget loss in nats, "retrained" for that of the retrained model, "steps100" for a
number of steps, "end" for the last state of an arm that reached none of those. What loss was reached is the row `forget_loss`.
"""

from __future__ import annotations

RETRAINED = "retrained"
END = "end"
STEPS = "steps"


def of_loss(loss: float | str) -> str:
    """Return the depth of a forget loss, or of the retrained model's, which is a word."""
    return loss if isinstance(loss, str) else repr(float(loss))


def of_steps(steps: int) -> str:
    """Return the depth of a number of steps."""
    return f"{STEPS}{steps}"


def stem(depth: str) -> str:
    """Return the part of a file's name that says a depth."""
    return depth if depth in (RETRAINED, END) or depth.startswith(STEPS) else f"depth{depth}"


def words(depth: str) -> str:
    """Return a depth as a reader is told it."""
    if depth == RETRAINED:
        return "the retrained model's forget loss"
    if depth == END:
        return "no wanted depth reached"
    return f"{depth.removeprefix(STEPS)} steps" if depth.startswith(STEPS) else f"forget loss {depth}"
