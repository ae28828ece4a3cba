"""What a profile may set for methods that have more settings than the common ones; a default is the paper's, or says whose."""

from __future__ import annotations

from pydantic import Field

from unforgotten.experiments.methods.settings import MethodConfig


class SimNPOConfig(MethodConfig):
    """Settings of SimNPO; the defaults are the authors' for MUSE Books, for News they take 0.75 and 3.

    Attributes:
        beta: inverse temperature. It acts on a mean over tokens, so it is larger than NPO's.
        gamma: margin.
    """

    beta: float = Field(default=0.7, gt=0)
    gamma: float = Field(default=0.0, ge=0)


class UndialConfig(MethodConfig):
    """Settings of UNDIAL.

    Attributes:
        strength: amount by which the logit of each token is lowered; the paper searches 3, 10, 30.
    """

    strength: float = Field(default=10.0, ge=0)


class RefusalConfig(MethodConfig):
    """Settings of methods that teach a refusal.

    Attributes:
        prompt_share: share of a document that stands as the question; the rest is the answer that is refused.
    """

    prompt_share: float = Field(default=0.4, gt=0, lt=1)


class RMUConfig(MethodConfig):
    """Settings of RMU.

    Attributes:
        alpha: weight of the retain term, in place of the common one; the paper's for a model of 7B.
        layer: decoder layer, from 0, whose output is steered; None takes the one at a quarter of the depth, as 7 of 32.
        steering: length of the vector that hidden states are steered to; the paper's for a model of 7B.
    """

    alpha: float | None = Field(default=1200.0, ge=0)
    layer: int | None = Field(default=None, ge=0)
    steering: float = Field(default=6.5, gt=0)


class TaskVectorConfig(MethodConfig):
    """Settings of the task vector.

    Attributes:
        strength: multiple of the vector that is subtracted.
    """

    strength: float = Field(default=1.0, gt=0)


class LoraConfig(MethodConfig):
    """Settings of LoRA.

    Attributes:
        rank: rank of the factors.
        lora_alpha: rank times the factor before their product.
    """

    rank: int = Field(default=8, ge=1)
    lora_alpha: int = Field(default=16, ge=1)
