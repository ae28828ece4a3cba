"""The final grid and the packed file of AutoAWQ 0.2.9, bit for bit. Its search for scales is not compared."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.verification.conformance.awq_comparison import CASES, hard_weights, read_back, reference

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="AutoAWQ runs on torch")
library = pytest.importorskip("awq.quantize.quantizer", reason="needs `make conformance-legacy`", exc_type=ImportError)

Array = NDArray[Any]


def library_final(w: Array, bits: int, size: int, symmetric: bool) -> tuple[Array, Array, Array | None]:
    """Values, scale and zero point of its last step, of which the method needs three settings alone."""
    settings = SimpleNamespace(group_size=size, zero_point=not symmetric, w_bit=bits)
    final = library.AwqQuantizer.pseudo_quantize_tensor
    values, scale, zero = final(settings, torch.from_numpy(w.copy()))
    return values.numpy(), scale.numpy(), None if zero is None else zero.numpy()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("bits", "size", "symmetric"), CASES)
def test_fit_autoawq__is_the_final_grid_of_autoawq(bits: int, size: int, symmetric: bool, dtype: str) -> None:
    """Ties, zero groups, groups far from 0 and subnormal ones; models in float16 are quantized in float16."""
    w = hard_weights(bits, dtype=dtype)
    ours = reference(w, bits, size, symmetric)
    values, scale, zero = library_final(w, bits, size, symmetric)
    assert np.array_equal(ours.scale, scale)
    if zero is None:
        assert symmetric
    else:
        assert np.array_equal(ours.zero, zero)
    assert np.array_equal(ours.values, values)


@pytest.mark.parametrize("size", [32, 64])
def test_audit__reads_what_autoawq_packs(size: int, tmp_path: Path) -> None:
    """The codes are the reference's, eight to a word in the order 0 2 4 6 1 3 5 7; values `fp16(scale) (q - zero)`."""
    layers = pytest.importorskip("awq.modules.linear.gemm")
    packing = pytest.importorskip("awq.utils.packing_utils")
    w = hard_weights(4)
    values, scale, zero = library_final(w, 4, size, False)
    assert zero is not None
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(values)
    parameters = [torch.from_numpy(np.ascontiguousarray(a.T)) for a in (scale, zero)]
    module = layers.WQLinear_GEMM.from_linear(layer, 4, size, False, *parameters)
    parts = (module.qweight, module.qzeros, module.scales)
    names = ("qweight", "qzeros", "scales")
    piece = read_back(dict(zip(names, (p.numpy() for p in parts), strict=True)), size, tmp_path)
    ours = reference(w, 4, size, False)
    assert np.array_equal(piece.codes, ours.codes.T)
    stored = np.repeat(ours.scale.astype(np.float16).astype(np.float32), size, axis=1)
    assert np.array_equal(piece.values, (stored * (ours.codes - np.repeat(ours.zero, size, axis=1))).T)
    assert np.array_equal(piece.values.astype(np.float16), packing.dequantize_gemm(*parts, 4, size).numpy())
