"""Products of bfloat16 matrices: by the processor's own instructions, or in float32 and rounded once to bfloat16.

torch multiplies bfloat16 matrices fast only through oneDNN, and oneDNN only by instructions made for it. Elsewhere torch
falls back to a plain loop, which took 40 times as long as the same product in float32. `Float32Products` computes there
what those instructions compute: products of two bfloat16 numbers are exact in float32, their sum is a float32 sum, and
the sum is rounded once, to nearest. Only the order of the sum differs.

    with products("float32"):
        loss = model(**batch).loss  # parameters, activations and gradients stay bfloat16
        loss.backward()
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unforgotten.experiments.config import Bf16Products, Products

aten = torch.ops.aten
PRODUCTS = frozenset(
    {
        aten.mm.default,
        aten.bmm.default,
        aten.addmm.default,
        aten.baddbmm.default,
        aten.mv.default,
        aten.addmv.default,
        aten.dot.default,
        aten.matmul.default,
        aten.linear.default,  # whole only in inference mode
    }
)
FUSED_ATTENTION = frozenset(
    {
        aten.scaled_dot_product_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    }
)
"""Products inside a kernel, where no sum can be taken apart from its rounding."""
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Of `torch.cpu.get_capabilities`; the last is Arm's. AVX-512 alone emulates, at less than half the speed of float32."""


class Float32Products(TorchDispatchMode):
    """Every product of bfloat16 matrices below, backward passes too, is computed in float32 and rounded to bfloat16.

    Attributes:
        computed: number of products computed in float32 so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute `func`, which torch hands over on its way to the kernels.

        Raises:
            ValueError: attention in one kernel was asked for, on bfloat16.
        """
        if func in PRODUCTS and _are_bfloat16(args):
            self.computed += 1
            wide = [a.float() if isinstance(a, Tensor) else a for a in args]
            return func(*wide, **kwargs or {}).to(torch.bfloat16)
        if func in FUSED_ATTENTION and _are_bfloat16(args):
            raise ValueError(f"attention must be 'eager' where bfloat16 products are computed in float32, got {func}")
        return func(*args, **kwargs or {})


def _are_bfloat16(args: tuple[Any, ...]) -> bool:
    return all(a.dtype == torch.bfloat16 for a in args if isinstance(a, Tensor))


def resolve(choice: Bf16Products, device: str = "cpu") -> Products:
    """Say how products are computed on a kind of device: "auto" is native where that is fast, as it is but on some processors."""
    if choice != "auto":
        return choice
    return "native" if device != "cpu" or native_is_fast() else "float32"


def products(computed: Products) -> contextlib.AbstractContextManager[object]:
    """Return the context in which bfloat16 matrices are multiplied so."""
    return Float32Products() if computed == "float32" else contextlib.nullcontext()


def native_is_fast() -> bool:
    """Tell whether torch multiplies bfloat16 matrices by instructions made for it.

    Both must hold: oneDNN takes bfloat16 products, within the limit that ONEDNN_MAX_CPU_ISA sets; and the processor has
    the instructions, for with AVX-512 alone oneDNN takes them too, and emulates.
    """
    taken = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # absent without oneDNN
    return taken is not None and bool(taken()) and _has_instructions()


def _has_instructions() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:  # an older torch, which cannot tell on Arm
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return any(capabilities().get(name, False) for name in INSTRUCTIONS)
