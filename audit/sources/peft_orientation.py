"""Whether a base stores the weight of a module as (out, in) or, as `Conv1D` of GPT-2 does, as (in, out).

PEFT decides by the class of the module and mends `fan_in_fan_out` by itself when it is loaded, so the flag in a file may
say anything. Here the shapes decide; where they fit both ways, the type of the base's model; else it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from unforgotten.audit.sources.errors import CheckpointError

CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "decision_transformer", "imagegpt", "clvp_decoder"})
"""Model types of transformers whose blocks are made of Conv1D."""
CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
"""Names that Conv1D has there; `nn.Linear` has them too in gpt_bigcode and others."""
LINEAR_TYPES = frozenset({"gpt_bigcode", "starcoder2", "codeshell", "phi-msft", "mpt"})
"""Model types that give `nn.Linear` a name of CONV1D_MODULES."""


class Asked(NamedTuple):
    """What is known of one module.

    Attributes:
        path: path of the adapter, for messages.
        tensor: tensor of the base.
        shape: shape in the base.
        factors: (outputs, inputs) of B A.
        flag: fan_in_fan_out of the adapter's configuration.
        model_type: type of the base's model, where its config.json says one.
    """

    path: Path
    tensor: str
    shape: tuple[int, ...]
    factors: tuple[int, int]
    flag: bool
    model_type: str | None


def is_turned(asked: Asked) -> bool:
    """Return whether the base stores (in, out).

    Raises:
        CheckpointError: the matrix is square, and nothing says it.
    """
    outs, ins = asked.factors
    if outs != ins:
        # a shape that fits neither way is refused where the parts are checked
        return asked.shape == (ins, outs) or (asked.shape != (outs, ins) and asked.flag)
    conv1d_name = asked.tensor.removesuffix(".weight").rpartition(".")[2] in CONV1D_MODULES
    if asked.model_type is not None and (asked.model_type in CONV1D_TYPES or not conv1d_name):
        return asked.model_type in CONV1D_TYPES and conv1d_name
    if asked.model_type in LINEAR_TYPES:
        return False
    if asked.flag or not conv1d_name:
        return asked.flag
    rule = (
        "must be known as nn.Linear or Conv1D to be merged with fan_in_fan_out false: give the base a config.json with "
        f"its model_type ({', '.join(sorted(CONV1D_TYPES))} are Conv1D, {', '.join(sorted(LINEAR_TYPES))} are not)"
    )
    raise CheckpointError(asked.path, rule, f"model_type {asked.model_type!r}", tensor=asked.tensor)
