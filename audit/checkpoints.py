"""A checkpoint: a directory of safetensors, single or sharded, or one safetensors file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.headers import CheckpointError, TensorInfo, parse_json_object, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model on disk; nothing is read until it is asked for.

    Attributes:
        source: the path as given.
        revision: the revision of a Hub source; None for a local path.
        files: the weight files, by name.
        tensors: name -> place, dtype and shape, by name.
    """

    source: Path
    revision: str | None
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> NDArray[Any]:
        """The tensor in its own dtype, mapped read-only from the file."""
        info = self.tensors[name]
        if info.nbytes == 0:
            return np.empty(info.shape, info.dtype)
        raw = np.memmap(info.path, np.uint8, "r", offset=info.offset, shape=(info.nbytes,))
        return np.asarray(raw).view(info.dtype).reshape(info.shape)

    def sha256(self) -> str:
        """SHA-256 over the bytes of the weight files in the order of their names, as `cat FILES | sha256sum`."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(HASH_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()


def open_checkpoint(source: Path) -> Checkpoint:
    """Read and check the headers of all weight files of a checkpoint.

    Of a directory that holds both, `model.safetensors` is taken and the index is not, as transformers does.

    Raises:
        CheckpointError: nothing is there, it holds no safetensors, or a file breaks a rule of its format.
    """
    if source.suffix in PICKLES and not source.is_dir():
        raise CheckpointError(source, "must be safetensors (a pickle can run code)", source.name)
    if source.is_file():
        return Checkpoint(source, None, (source,), read_header(source))
    if not source.is_dir():
        raise CheckpointError(
            source, "must be a directory or a .safetensors file that exists", "none"
        )
    if (source / SINGLE).exists():
        return Checkpoint(source, None, (source / SINGLE,), read_header(source / SINGLE))
    if (source / INDEX).exists():
        return _open_sharded(source)
    raise _nothing_to_open(source)


def _nothing_to_open(source: Path) -> CheckpointError:
    names = sorted(path.name for path in source.iterdir())
    if others := [name for name in names if name.endswith(".safetensors")]:
        return CheckpointError(source, f"must hold {SINGLE} or {INDEX}", ", ".join(others))
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        rule = "must hold safetensors (a pickle can run code and is refused)"
        return CheckpointError(source, rule, ", ".join(pickles))
    return CheckpointError(source, f"must hold {SINGLE} or {INDEX}", ", ".join(names) or "nothing")


def _open_sharded(source: Path) -> Checkpoint:
    index = source / INDEX
    shard_of = _read_index(index)
    shards = sorted(set(shard_of.values()))
    headers = {shard: read_header(_shard_path(index, shard)) for shard in shards}
    for shard, header in headers.items():
        for name in header:
            if shard_of.get(name) != shard:
                rule = f"must be in the file that {INDEX} names, {shard_of.get(name)!r}"
                raise CheckpointError(source / shard, rule, repr(shard), tensor=name)
    for name, shard in sorted(shard_of.items()):
        if name not in headers[shard]:
            raise CheckpointError(
                index, f"must be in its shard {shard!r}", "no such tensor", tensor=name
            )
    tensors = {name: headers[shard_of[name]][name] for name in sorted(shard_of)}
    return Checkpoint(source, None, tuple(source / shard for shard in shards), tensors)


def _read_index(index: Path) -> dict[str, str]:
    if not index.is_file():
        raise CheckpointError(index, "must be a regular file", "something else")
    shard_of = parse_json_object(index, index.read_bytes()).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(index, "must have a weight_map of tensor to shard", shard_of)
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            rule = "must be in a .safetensors file of the same directory"
            raise CheckpointError(index, rule, repr(shard), tensor=name)
    return shard_of


def _is_plain_name(shard: str) -> bool:
    """Whether the name can only mean a file of its own directory, on any system."""
    plain = shard.isprintable() and PureWindowsPath(shard).name == shard
    return plain and shard.endswith(".safetensors")


def _shard_path(index: Path, shard: str) -> Path:
    path = index.parent / shard
    if not path.is_file():
        raise CheckpointError(index, "must name only shards that exist", f"missing shard {shard!r}")
    return path
