"""The depth of an unlearned state: how far forgetting was wanted to go when its weights were kept.

The field `depth` of a row holds it: "0.6" for a forget loss in nats, "retrained" for that of the retrained model, "steps100" for a
number of steps, "end" for the last state of an arm that reached none of those, or whose method keeps no other. What loss was
reached is the row `forget_loss`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        return "the end of arms that kept no wanted depth"
    return f"{depth.removeprefix(STEPS)} steps" if depth.startswith(STEPS) else f"forget loss {depth}"


def wanted(unlearning: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the depths at which a run is to keep weights, of the section `unlearning` of its configuration; none without any."""
    losses, steps = unlearning.get("depths") or (), unlearning.get("at_steps") or ()
    return (*map(of_loss, losses), *map(of_steps, steps))


def kept_depths(unlearning: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Return the depths that a state of a run may have, of the same section: None alone where weights are kept at the end."""
    depths = wanted(unlearning)
    return (*depths, END) if depths else (None,)


def state_name(method: str, storage: str, depth: str | None) -> str:
    """Return the name of the folder of an unlearned model."""
    return f"unlearned-{method}-{storage}" + ("" if depth is None else f"-{stem(depth)}")
