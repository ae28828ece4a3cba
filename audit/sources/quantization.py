"""What `quantization_config` says about a checkpoint that is quantized already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from unforgotten.audit.sources.errors import CheckpointError

MAX_GROUP = 1 << 24
GPTQ_BITS = (2, 4, 8)
SKIPPED = "-:"
"""How a pattern of modules that GPTQModel does not quantize begins."""


class Scheme(NamedTuple):
    """How all layers of a checkpoint are stored.

    Attributes:
        method: method, one of SCHEMES.
        layout: key of LAYOUTS.
        bits: number of bits of a code.
        group_size: number of inputs that share a scale; -1 for all.
        zero_shift: number that is added to every stored zero point of GPTQ: 1 of format v1, 0 of v2.
        detail: quant type, where that is more than a number of bits.
        tile: rows and columns that share a scale, where both are more than one.
        others: bits and group sizes that single layers may have instead, by `dynamic` of GPTQModel.
        symmetric: whether all zero points are 0 (of GPTQ, the middle code); None where the configuration does not say.
    """

    method: str
    layout: str
    bits: int
    group_size: int
    zero_shift: int = 0
    detail: str = ""
    tile: tuple[int, int] = (1, 1)
    others: tuple[tuple[int, int], ...] = ()
    symmetric: bool | None = None

    @property
    def name(self) -> str:
        """As a format in a result: gptq:int4-g128, bitsandbytes:nf4, compressed-tensors:packed-4bit-g128."""
        kind = self.detail or f"int{self.bits}"
        if self.method == "compressed-tensors":
            kind = f"{self.layout.removeprefix('ct-')}-{self.bits}bit"
        tile = "" if self.tile == (1, 1) else "-{}x{}".format(*self.tile)
        return f"{self.method}:{kind}" + (f"-g{self.group_size}" if self.group_size > 0 else "") + tile

    @property
    def recipe(self) -> Scheme:
        """What two checkpoints must have in common to be compared; the rest is read from each of them."""
        return self._replace(zero_shift=0, others=(), symmetric=None)


def read_scheme(path: Path, stated: object) -> Scheme:
    """Return the scheme of a `quantization_config`.

    Raises:
        CheckpointError: the method, or an option of it, is not known here.
    """
    if not isinstance(stated, dict):
        raise CheckpointError(path, "must have an object for quantization_config", repr(stated))
    method = stated.get("quant_method")
    if not isinstance(method, str) or method not in SCHEMES:
        rule = f"must have quant_method {', '.join(SCHEMES)}"
        raise CheckpointError(path, rule, repr(method))
    return SCHEMES[method](path, stated)


def _gptq(path: Path, stated: Mapping[str, object]) -> Scheme:
    shifts = {None: 1, "gptq": 1, "gptq_v2": 0}
    form = stated.get("checkpoint_format", stated.get("format"))
    if not (form is None or isinstance(form, str)) or form not in shifts:
        raise CheckpointError(path, "must have checkpoint_format gptq or gptq_v2", repr(form))
    bits, group = _choice(path, stated, "bits", GPTQ_BITS), _group(path, stated.get("group_size", -1))
    others, symmetric = _dynamic(path, stated, bits, group), _flag(path, stated, "sym")
    return Scheme("gptq", "gptq", bits, group, shifts[form], others=others, symmetric=symmetric)


def _dynamic(path: Path, stated: Mapping[str, object], bits: int, group: int) -> tuple[tuple[int, int], ...]:
    """Return the bits and group sizes that `dynamic` gives to the modules of a pattern; `-:` before one skips them.

    The patterns themselves are not run, for a hostile one can hang: the shapes of a layer tell which it has.
    """
    dynamic = stated.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise CheckpointError(path, "must have an object of patterns for dynamic", repr(dynamic))
    found = []
    for pattern, own in dynamic.items():
        if pattern.startswith(SKIPPED):
            continue
        if not isinstance(own, dict):
            raise CheckpointError(path, f"must have an object for {pattern!r} of dynamic", repr(own))
        merged = {"bits": bits, "group_size": group} | own
        found.append((_choice(path, merged, "bits", GPTQ_BITS), _group(path, merged["group_size"])))
    return tuple(sorted(set(found) - {(bits, group)}))


def _awq(path: Path, stated: Mapping[str, object]) -> Scheme:
    version = stated.get("version", stated.get("format", "gemm"))
    if not isinstance(version, str) or version.lower() != "gemm":
        raise CheckpointError(path, "must have version gemm", repr(version))
    bits = _choice(path, stated, "bits" if "bits" in stated else "w_bit", (4,))
    group = stated.get("group_size", stated.get("q_group_size", -1))
    return Scheme("awq", "awq", bits, _group(path, group))


def _bitsandbytes(path: Path, stated: Mapping[str, object]) -> Scheme:
    if stated.get("load_in_8bit") is True or stated.get("_load_in_8bit") is True:
        return Scheme("bitsandbytes", "bnb-8bit", 8, -1)
    kind = stated.get("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4"):
        raise CheckpointError(path, "must have bnb_4bit_quant_type nf4 or fp4", repr(kind))
    return Scheme("bitsandbytes", "bnb-4bit", 4, -1, detail=str(kind))


CT_LAYOUTS: Mapping[str, str] = {
    "pack-quantized": "ct-packed",
    "int-quantized": "ct-plain",
    "float-quantized": "ct-plain",
    "naive-quantized": "ct-plain",
    "nvfp4-pack-quantized": "ct-nvfp4",
}


def _compressed_tensors(path: Path, stated: Mapping[str, object]) -> Scheme:
    form, groups = stated.get("format"), stated.get("config_groups")
    if not isinstance(form, str) or form not in CT_LAYOUTS:
        raise CheckpointError(path, f"must have format {', '.join(CT_LAYOUTS)}", repr(form))
    if stated.get("sparsity_config") and not _is_dense(stated["sparsity_config"]):
        raise CheckpointError(path, "must not be sparse", repr(stated["sparsity_config"]))
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(path, "must have config_groups", repr(groups))
    found = {_ct_group(path, group) for group in groups.values()}
    if len(found) > 1:
        raise CheckpointError(path, "must have one bits, group_size and symmetric for all", sorted(found))
    bits, size, tile, symmetric = found.pop()
    if symmetric is False and (tile != (1, 1) or CT_LAYOUTS[form] == "ct-nvfp4"):
        kind = form if tile == (1, 1) else "strategy block"
        raise CheckpointError(path, f"must have symmetric true with {kind}, which has no zero points here", "False")
    if tile == (1, 1):
        return Scheme("compressed-tensors", CT_LAYOUTS[form], bits, size, symmetric=symmetric)
    if CT_LAYOUTS[form] != "ct-plain" or bits != 8:
        raise CheckpointError(path, "must have format float-quantized and 8 bits with strategy block", repr(form))
    return Scheme("compressed-tensors", "ct-block", bits, size, tile=tile, symmetric=symmetric)


def _is_dense(sparsity: object) -> bool:
    return isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"


def _ct_group(path: Path, group: object) -> tuple[int, int, tuple[int, int], bool | None]:
    """Return bits, group size, tile, and whether the group is symmetric where that is stated."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(path, "must have weights in every config group", repr(weights))
    strategy = weights.get("strategy")
    if strategy not in ("tensor", "channel", "group", "tensor_group", "block"):
        rule = "must have strategy tensor, channel, group, tensor_group or block"
        raise CheckpointError(path, rule, repr(strategy))
    bits = _choice(path, weights, "num_bits", tuple(range(1, 9)))
    grouped = strategy in ("group", "tensor_group")
    tile = _tile(path, "block_structure", weights.get("block_structure")) if strategy == "block" else (1, 1)
    size = _group(path, weights.get("group_size")) if grouped else -1
    return bits, size, tile, _flag(path, weights, "symmetric")


def _fp8(path: Path, stated: Mapping[str, object]) -> Scheme:
    if stated.get("weight_block_size") is None:
        return Scheme("fp8", "fp8-tensor", 8, -1, detail="e4m3")
    tile = _tile(path, "weight_block_size", stated.get("weight_block_size"))
    return Scheme("fp8", "fp8", 8, -1, detail="e4m3", tile=tile)


def _fbgemm_fp8(path: Path, stated: Mapping[str, object]) -> Scheme:
    return Scheme("fbgemm_fp8", "fp8-tensor", 8, -1, detail="e4m3")


def _modelopt(path: Path, stated: Mapping[str, object]) -> Scheme:
    algorithm = stated.get("quant_algo")
    known = {"NVFP4": ("modelopt-nvfp4", 4, 16, "nvfp4"), "FP8": ("ct-plain", 8, -1, "fp8")}
    if not isinstance(algorithm, str) or algorithm.upper() not in known:
        raise CheckpointError(path, f"must have quant_algo {' or '.join(known)}", repr(algorithm))
    layout, bits, size, detail = known[algorithm.upper()]
    if size > 0 and stated.get("group_size", size) != size:
        raise CheckpointError(path, f"must have group_size {size} for {algorithm}", repr(stated.get("group_size")))
    return Scheme("modelopt", layout, bits, size, detail=detail)


def _mxfp4(path: Path, stated: Mapping[str, object]) -> Scheme:
    return Scheme("mxfp4", "mxfp4", 4, 32, detail="e2m1")


def _tile(path: Path, key: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise CheckpointError(path, f"must have two sizes for {key}, as [128, 128]", repr(value))
    rows, columns = (_group(path, n) for n in value)
    if min(rows, columns) < 1 or (rows, columns) == (1, 1):
        raise CheckpointError(path, f"must have two sizes for {key}, as [128, 128]", repr(value))
    return rows, columns


def _choice(path: Path, stated: Mapping[str, object], key: str, known: tuple[int, ...]) -> int:
    value = stated.get(key)
    if type(value) is not int or value not in known:
        raise CheckpointError(path, f"must have {key} in {list(known)}", repr(value))
    return value


def _flag(path: Path, stated: Mapping[str, object], key: str) -> bool | None:
    value = stated.get(key)
    if not (value is None or isinstance(value, bool)):
        raise CheckpointError(path, f"must have true or false for {key}", repr(value))
    return value


def _group(path: Path, value: object) -> int:
    if type(value) is not int or not (value == -1 or 1 <= value <= MAX_GROUP):
        raise CheckpointError(path, f"must have a group size in 1 … {MAX_GROUP}, or -1", repr(value))
    return value


SCHEMES: Mapping[str, Callable[[Path, Mapping[str, object]], Scheme]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "modelopt": _modelopt,
    "mxfp4": _mxfp4,
}
