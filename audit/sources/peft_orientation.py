"""Whether a base stores the weight of an adapted module as (out, in) or, as `Conv1D` of GPT-2 does, as (in, out).

PEFT decides by the class of the module and mends `fan_in_fan_out` by itself when it is loaded, so the flag in a file may
say anything. Here the shapes decide; where they fit both ways, what is known of the base's model; else it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.matching.conv1d import CONV1D_TYPES, LINEAR_TYPES, may_be_conv1d


class Asked(NamedTuple):
    """What is known of one module.

    Attributes:
        path: path of the adapter, for messages.
        tensor: tensor of the base.
        shape: shape in the base.
        factors: (outputs, inputs) of B A.
        flag: fan_in_fan_out of the adapter's configuration.
        model_type: type of the base's model, where its config.json says one.
        conv1d: whether the base's blocks are made of Conv1D, None where nothing says.
    """

    path: Path
    tensor: str
    shape: tuple[int, ...]
    factors: tuple[int, int]
    flag: bool
    model_type: str | None
    conv1d: bool | None


def is_turned(asked: Asked) -> bool:
    """Return whether the base stores (in, out).

    Raises:
        CheckpointError: the matrix is square, and nothing says it.
    """
    outs, ins = asked.factors
    if outs != ins:
        # a shape that fits neither way is refused where the parts are checked
        return asked.shape == (ins, outs) or (asked.shape != (outs, ins) and asked.flag)
    if not may_be_conv1d(asked.tensor):
        return asked.flag and asked.model_type is None
    if asked.conv1d is not None or asked.flag:
        return asked.flag if asked.conv1d is None else asked.conv1d
    rule = (
        "must be known as nn.Linear or Conv1D to be merged with fan_in_fan_out false: give the base a config.json with "
        f"its model_type ({', '.join(sorted(CONV1D_TYPES))} are Conv1D, {', '.join(sorted(LINEAR_TYPES))} are not)"
    )
    raise CheckpointError(asked.path, rule, f"model_type {asked.model_type!r}", tensor=asked.tensor)
