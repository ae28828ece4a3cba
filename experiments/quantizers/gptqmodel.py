"""GPTQ by gptqmodel on the CPU, layer by layer, with its own defaults: `gptqmodel:int4-g128`, `gptqmodel-forget:int4-g64-asym`.

Its defaults: damping of 0.05, grids of a group fitted when its turn comes, groups and the columns in them in the order of
falling diagonal of H ("group-aware"); in the order of columns where the group is a row. Names say bits and groups; scales are
the library's, range / (2^b - 1), kept in float32, where its files round them to float16. H is summed in float64 and rounded
to float32, in which the library computes. A layer that no token reached is rounded to nearest by the library.

`gptqmodel:` is calibrated on generic text, `gptqmodel-retain:` and `gptqmodel-forget:` on what unlearning sees of a split.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from unforgotten.experiments.quantizers.calibrated import by_layer
from unforgotten.theory.formats.names import Format

if TYPE_CHECKING:
    from torch import Tensor

    from unforgotten.experiments.models.layer_inputs import Inputs

REQUIREMENT = "gptqmodel==7.6.0"
WORKERS = "GPTQMODEL_CPU_WORKERS"
"""Variable without which the library refuses to load where there are at most two processors: it counts one, and wants two."""


def integers(name: str) -> None:
    """Take integers by group or row.

    Raises:
        ValueError: the format is another.
    """
    if not re.fullmatch(r"int[2348]-(row|g[1-9]\d*)(-asym)?", name):
        raise ValueError(
            f"format must be intB-gN or intB-row of 2, 3, 4 or 8 bits, with -asym or not, for gptqmodel, got {name!r}"
        )


def library_task(w: Tensor, fmt: Format) -> Any:
    """Return the library's GPTQ of a linear layer with these weights, which has seen no input yet.

    Args:
        w: weights, float32 (rows, columns).
        fmt: bits, group and whether there are zero points.

    Raises:
        ValueError: a row is no multiple of the group.
    """
    from torch import nn

    size = fmt.block_size
    if size is not None and w.shape[1] % size:
        raise ValueError(f"gptqmodel:{fmt.name} takes rows of whole groups of {size}, got columns={w.shape[1]}")
    os.environ.setdefault(WORKERS, "2")
    QuantizeConfig = import_module("gptqmodel.quantization").QuantizeConfig
    GPTQ = import_module("gptqmodel.quantization.gptq").GPTQ

    settings = {"bits": fmt.bits, "group_size": size or -1, "sym": not fmt.zero_point, "offload_to_disk": False}
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False, device="cpu")
    layer.weight = nn.Parameter(w.detach().cpu().float().clone(), requires_grad=False)
    task = GPTQ(layer, QuantizeConfig(**settings, desc_act=False, act_group_aware=size is not None))
    task.quantizer.configure(perchannel=True)
    return task


def library_values(w: Tensor, inputs: Inputs, fmt: Format) -> Tensor:
    """Return Q(w), float32 in the shape of `w`.

    Raises:
        ValueError: as `library_task`; or a weight is not finite.
    """
    import torch

    if not torch.isfinite(w).all():
        raise ValueError(f"weights must be finite to be quantized to gptqmodel:{fmt.name}, got nan or inf")
    task = library_task(w, fmt)
    task.H, task.nsamples = inputs.hessian.float().cpu(), inputs.tokens
    values: Tensor = task.quantize()[0]
    return values.to(w.device)


QUANTIZERS = by_layer(
    "gptqmodel",
    library_values,
    {"int{2,3,4,8}-{row|gN}[-asym]": "GPTQ on integers of gptqmodel"},
    takes=integers,
    packages=(REQUIREMENT,),
)
