"""What a profile may set for SURE."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unforgotten.experiments.methods.settings import MethodConfig


class SureConfig(MethodConfig):
    """Settings of SURE.

    Attributes:
        mask: parts that are masked: "module", "layer", "neuron", found once at the target's weights; "row", in every step.
        threshold: percentile of the norms of the parts' gradients below which a part is masked; 0 masks none. The paper
            has 99 and 90.
    """

    mask: Literal["module", "row", "neuron", "layer"] = "module"
    threshold: float = Field(default=90.0, ge=0, lt=100)
