"""The final grid and the packed file of AWQ in gptqmodel 7.6.0, bit for bit. Its search for scales is not compared.

Not installed by default: `make conformance`.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.verification.conformance.awq_comparison import CASES, hard_weights, read_back, reference

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # or it refuses two processors, see test_traps

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="gptqmodel runs on torch")
pytest.importorskip("gptqmodel", reason="a library of AWQ")
processor = pytest.importorskip("gptqmodel.looper.awq_processor", reason="as above")

Array = NDArray[Any]


def library_final(w: Array, bits: int, size: int, symmetric: bool) -> tuple[Array, Array, Array]:
    """Values, scale and zero point of its last step, of which the method needs the configuration alone."""
    config = SimpleNamespace(group_size=size, sym=symmetric, bits=bits)
    final = processor.AWQProcessor.pseudo_quantize_tensor
    values, scale, zero = final(SimpleNamespace(qcfg=config), torch.from_numpy(w.copy()))
    return values.numpy(), scale.numpy(), zero.numpy()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("bits", "size", "symmetric"), CASES)
def test_fit_autoawq__is_the_final_grid_of_gptqmodel(bits: int, size: int, symmetric: bool, dtype: str) -> None:
    """Ties, zero groups, groups far from 0 and subnormal ones; models in float16 are quantized in float16."""
    w = hard_weights(bits, dtype=dtype)
    ours = reference(w, bits, size, symmetric)
    values, scale, zero = library_final(w, bits, size, symmetric)
    assert np.array_equal(ours.scale, scale)
    assert np.array_equal(ours.zero, zero)
    assert np.array_equal(ours.values, values)


def test_fit_autoawq__is_the_final_grid_by_half_even_only() -> None:
    """The comparison has power: there are ties, and half up gives other values."""
    w, size = hard_weights(4), 32
    ours, (values, _, _) = reference(w, 4, size, False), library_final(w, 4, size, False)
    scale, zero = (np.repeat(a, size, axis=1) for a in (ours.scale, ours.zero))
    half_up = np.clip(np.floor(w / scale + np.float32(0.5)) + zero, 0, 15)
    assert np.array_equal(ours.values, values)
    assert not np.array_equal(scale * (half_up - zero), values)


def packed(w: Array, size: int, symmetric: bool) -> tuple[dict[str, Array], Array]:
    """What the library stores, and its own dequantized weights (columns, rows) in float16."""
    layers = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch_awq")
    packing = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils")
    values, scale, zero = library_final(w, 4, size, symmetric)
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(values)
    module = layers.AwqTorchLinear(
        bits=4,
        group_size=size,
        sym=symmetric,
        desc_act=False,
        in_features=w.shape[1],
        out_features=w.shape[0],
        bias=False,
    )
    module.pack(layer, torch.from_numpy(scale), torch.from_numpy(zero))
    parts = (module.qweight, module.qzeros, module.scales)
    read = packing.dequantize_gemm(*parts, 4, size).numpy()
    return dict(zip(("qweight", "qzeros", "scales"), (p.numpy() for p in parts), strict=True)), read


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [32, 64])
def test_audit__reads_what_gptqmodel_packs_of_awq(size: int, symmetric: bool, tmp_path: Path) -> None:
    """The codes are the reference's, the values `fp16(scale) (q - zero)`."""
    w = hard_weights(4)
    ours = reference(w, 4, size, symmetric)
    stored, read = packed(w, size, symmetric)
    piece = read_back(stored, size, tmp_path)
    assert np.array_equal(piece.codes, ours.codes.T)
    scale = np.repeat(ours.scale.astype(np.float16).astype(np.float32), size, axis=1)
    zero = np.repeat(ours.zero, size, axis=1)
    assert np.array_equal(piece.values, (scale * (ours.codes - zero)).T)
    assert np.array_equal(piece.values.astype(np.float16), read)


def test_packed__spills_a_code_into_the_next_where_float16_rounds_a_tiny_scale(tmp_path: Path) -> None:
    """Found here: codes are made again, as `value / fp16(scale)`, and not clipped: 15 becomes 16 at a range of 1e-5.

    Weights of a range below about 2e-5 in a whole group are not those of a model; nothing else is affected.
    """
    size, unit = 32, 2.0**-24  # the spacing of subnormal float16 numbers
    w = np.zeros((8, size), np.float32)
    w[:, 0] = 15 * 11.49 * unit  # scale 11.49 units, stored as 11
    ours = reference(w, 4, size, False)
    assert ours.codes[0, 0] == 15
    piece = read_back(packed(w, size, False)[0], size, tmp_path)
    assert not np.array_equal(piece.codes, ours.codes.T)
