"""What a profile may set for the methods of this folder."""

from __future__ import annotations

from pydantic import Field, field_validator

from unforgotten.experiments.methods.settings import MethodConfig
from unforgotten.theory.formats.names import deterministic_format_named


class SamConfig(MethodConfig):
    """Settings of SAM.

    Attributes:
        rho: length of the perturbation of all weights together.
    """

    rho: float = Field(default=0.01, gt=0)


class StraightThroughConfig(MethodConfig):
    """Settings of straight-through training.

    Attributes:
        formats: formats of which one is drawn for each step, evenly; "none" is the model as it is.
    """

    formats: tuple[str, ...] = Field(default=("none", "int4-g64", "int4-row", "nf4-b64", "fp4-b64"), min_length=1)

    @field_validator("formats")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name != "none":
                deterministic_format_named(name)
        return names


class BoundaryConfig(MethodConfig):
    """Settings of the boundary push.

    Attributes:
        format: format whose cells are crossed.
        share: largest share of the weights of linear layers that is moved.
        retain_budget: largest rise of the retain loss of the quantized model by the push, nats per token.
    """

    format: str = "int4-g64"
    share: float = Field(default=0.01, gt=0, le=1)
    retain_budget: float = Field(default=0.05, gt=0)

    @field_validator("format")
    @classmethod
    def _deterministic(cls, name: str) -> str:
        deterministic_format_named(name)
        return name
