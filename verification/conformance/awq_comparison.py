"""What a comparison with a library's AWQ needs: hard weights, the final grid of the reference, and its packed file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.codes.layer import CodedWeights
from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.audit.sources.checkpoint import open_checkpoint
from unforgotten.audit.sources.quantization import read_scheme
from unforgotten.theory.formats.group_grids import decode_group, encode_group, fit_autoawq
from unforgotten.verification.chance import rng_for

Array = NDArray[Any]
CASES = [(bits, size, symmetric) for bits in (2, 3, 4, 8) for size in (32, 64) for symmetric in (0, 1)]


class Final(NamedTuple):
    """Codes and values (rows, columns); scale and zero point of each group (rows, groups)."""

    codes: Array
    values: Array
    scale: Array
    zero: Array


def reference(w: Array, bits: int, size: int, symmetric: bool) -> Final:
    """Return our reference's final grid, in the dtype of the weights, whose columns are whole groups."""
    groups = w.reshape(-1, size)
    grid = fit_autoawq(groups, bits, symmetric)
    codes = encode_group(groups, grid, bits)
    per_row = (len(w), -1)
    return Final(
        codes.reshape(w.shape),
        decode_group(codes, grid).reshape(w.shape),
        grid.scale.reshape(per_row),
        grid.zero.reshape(per_row),
    )


def hard_weights(bits: int, *, dtype: str = "float32") -> Array:
    """Return (32, 128): normal, heavy tails, zero groups, one sign, far from 0, subnormal, and ties at a step of 1."""
    rng, top = rng_for("awq", bits, dtype), 2**bits - 1
    w = 0.02 * rng.normal(size=(32, 128))
    w[1] *= rng.standard_t(2, size=128)
    w[2], w[3, :32] = 0, 0
    w[4], w[5] = np.abs(w[4]), -np.abs(w[5])
    w[6], w[7] = w[6] + 30, w[7] - 30
    w[8] = np.ldexp(rng.integers(-300, 301, 128), -149)
    w[9] = 0.25
    ties = rng.integers(-2 * top, 2 * top + 1, (16, 128)) / 4  # of half a step, and of a quarter
    ties[:, ::32], ties[:, 1::32] = np.floor(top / 2), -np.ceil(top / 2)
    w[16:] = ties
    w[24:, ::32] = 2 ** (bits - 1) - 1  # the largest magnitude of a symmetric grid of step 1
    w[24:] = np.clip(w[24:], -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1)
    return w.astype(dtype)


def read_back(tensors: Mapping[str, Array], size: int, folder: Path) -> CodedWeights:
    """Return what the audit reads from a checkpoint of these 4-bit tensors: codes and values, (columns, rows).

    Args:
        tensors: qweight, qzeros, scales as the library stores them.
        size: columns that share a grid.
        folder: for the checkpoint.
    """
    from safetensors.numpy import save_file

    contiguous = {f"layer.{k}": np.ascontiguousarray(v) for k, v in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    stated = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"}
    scheme = read_scheme(folder / "config.json", stated)
    layer = LAYOUTS[scheme.layout].open(scheme, open_checkpoint(folder), "layer")
    return layer.decode(0, layer.units)
