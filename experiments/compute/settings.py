"""What a profile may say of devices and memory."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from unforgotten.experiments.section import Section

Dtype = Literal["float32", "bfloat16", "float16"]
AdamW = Literal["plain", "fused", "paged"]


class ComputeConfig(Section):
    """Devices and memory. What they change in the rows is rounding, but for `evaluation_dtype`.

    Attributes:
        device: "cpu"; "cuda", "cuda:N" or "mps"; "auto" is the first of cuda, mps and cpu that is there. Processes of one launch
            have a GPU each.
        evaluation_dtype: dtype of the model that is measured. Quantizers compute in float32, and their values are rounded to it.
        gradient_checkpointing: whether activations of decoder layers are computed again in backward passes, not kept.
        micro_batch: documents of one pass of training and unlearning; None for the whole batch. The loss is that of the batch.
        adamw: implementation of AdamW where a step is rounded to nearest: "plain" is torch's; "fused" torch's one kernel for all
            parameters; "paged" that of bitsandbytes, whose moments leave the GPU where its memory is short.
    """

    device: str = Field(default="cpu", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    evaluation_dtype: Dtype = "float32"
    gradient_checkpointing: bool = False
    micro_batch: int | None = Field(default=None, ge=1)
    adamw: AdamW = "plain"

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave defaults out: a setting that is added changes no hash of a configuration that does not use it."""
        tree: dict[str, Any] = handler(self)
        return {name: value for name, value in tree.items() if value != type(self).model_fields[name].default}


DEFAULT = ComputeConfig()
"""All on the CPU, in float32, whole batches."""
