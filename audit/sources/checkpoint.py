"""A checkpoint: named tensors that are read when they are asked for; and the kind made of safetensors on disk.

In goes a path, out comes a `Checkpoint`; nothing but headers is read until a weight is asked for:

    checkpoint = open_checkpoint(Path("model"))
    checkpoint.tensors["model.norm.weight"].shape
    checkpoint.read("model.norm.weight")
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.files import LocalFile, WeightFile, open_file, read_all, sha256_of
from unforgotten.audit.sources.hostile_json import MAX_JSON_BYTES, parse_json_object
from unforgotten.audit.sources.notes import named
from unforgotten.audit.sources.safetensors_header import CheckpointError, TensorInfo, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
WEIGHTS = (".safetensors", ".gguf")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CHUNK_BYTES = 1 << 24


class Checkpoint(Protocol):
    """The tensors of one model. Opening reads names, dtypes and shapes; a weight is read when it is asked for.

    Files, Hub repositories, adapters merged over a base and decoded GGUF files all look like this. Nothing is kept of
    what was read, so memory is that of the arrays the caller holds. Safe to use from several threads.
    """

    @property
    def source(self) -> Path | str:
        """As given, for messages and the result."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit of a Hub source; None for a local one."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape of every tensor, by name, in the order of the names."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """Return the whole tensor, in the dtype and shape that `tensors` states.

        Raises:
            CheckpointError: the file changed since it was opened.
        """
        ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read rows start … stop - 1 of the first axis, bit for bit those of `read`; 0 <= start <= stop <= shape[0].

        Raises:
            CheckpointError: as `read`.
        """
        ...

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Read weights start … stop - 1 of the flattened tensor of at least one axis, bit for bit those of `read`.

        Args:
            name: name of the tensor.
            start: start of the range.
            stop: stop of the range.
            buffer: memory of enough bytes that a source may put the weights in, to be read before its next use.

        Raises:
            CheckpointError: as `read`, but what changes after a file was mapped is found by `check` only.
        """
        ...

    def check(self, name: str) -> None:
        """Look whether the file of a tensor is still the one that was opened, where `read_flat` may have mapped it.

        Raises:
            CheckpointError: it is not.
        """
        ...

    def sha256(self) -> str:
        """Return the SHA-256 of the bytes of the files that determine the weights; what order, each kind says."""
        ...


def flat_from_rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> NDArray[Any]:
    """Read weights start … stop - 1 of the flattened tensor by the rows that hold them: for a source that has only rows."""
    columns = math.prod(checkpoint.tensors[name].shape[1:])
    first, last = start // columns, -(-stop // columns)
    rows = checkpoint.read_rows(name, first, last).reshape(-1)
    return rows[start - first * columns : stop - first * columns]


def row_chunks(info: TensorInfo, most_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that cover a tensor of at least one axis, each of about `most_bytes` or of one row.

    A tensor without a weight has none: 2^60 rows of no bytes fit any file.
    """
    if not info.nbytes:
        return
    rows = info.shape[0]
    step = max(1, most_bytes // (info.nbytes // rows))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def chunks(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[Any]]:
    """Yield the tensor from front to back, flat, in pieces of bounded memory."""
    info = checkpoint.tensors[name]
    if not info.shape:
        yield checkpoint.read(name).reshape(-1)
        return
    for start, stop in row_chunks(info):
        yield checkpoint.read_rows(name, start, stop).reshape(-1)


@dataclass(frozen=True)
class SafetensorsCheckpoint:
    """Tensors in safetensors files; `sha256` is over the files in the order of their names.

    Attributes:
        source: path or name, as given.
        revision: the commit of a Hub source; None for a local path.
        files: the weight files, in the order of their names.
        tensors: dtype and shape of every tensor, see `Checkpoint.tensors`.
        notes: sentences on which files were read, see `notes`.
    """

    source: Path | str
    revision: str | None
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, TensorInfo]
    notes: tuple[str, ...] = ()

    def read(self, name: str) -> NDArray[Any]:
        """See `Checkpoint.read`."""
        info = self.tensors[name]
        return self._read(info, 0, info.nbytes).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        info = self.tensors[name]
        shape = (stop - start, *info.shape[1:])
        row = info.nbytes // max(1, info.shape[0])
        return self._read(info, start * row, (stop - start) * row).reshape(shape)

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """See `Checkpoint.read_flat`: the file is mapped where `files.mapping_files` says so, else read into `buffer`."""
        info = self.tensors[name]
        size = info.dtype.itemsize
        begin, nbytes = start * size, (stop - start) * size
        file = self._file(info)
        if buffer is None or not isinstance(file, LocalFile) or info.offset is None:
            return self._read(info, begin, nbytes)
        at = info.offset + begin
        if at % size == 0 and (seen := file.look(at, nbytes)) is not None:
            return seen.view(info.dtype)
        file.read_into(at, buffer[:nbytes])
        return buffer[:nbytes].view(info.dtype)

    def check(self, name: str) -> None:
        """See `Checkpoint.check`."""
        file = self._file(self.tensors[name])
        if isinstance(file, LocalFile):
            file.check()

    def _read(self, info: TensorInfo, begin: int, nbytes: int) -> NDArray[Any]:
        if nbytes == 0:
            return np.empty(0, info.dtype)
        assert info.offset is not None, "a tensor of a file has a place"
        return self._file(info).read(info.offset + begin, nbytes).view(info.dtype)

    def _file(self, info: TensorInfo) -> WeightFile:
        return next(file for file in self.files if file.path == info.path)

    def sha256(self) -> str:
        """Return the SHA-256 of the weight files in the order of their names, as `cat FILES | sha256sum`."""
        return sha256_of(self.files)


def open_checkpoint(source: Path) -> SafetensorsCheckpoint:
    """Read and check the headers of all weight files of a local checkpoint of safetensors.

    Of a directory that holds both, `model.safetensors` is taken and the index is not, as transformers does.

    Raises:
        CheckpointError: nothing is there, it holds no safetensors, or a file breaks a rule of its format.
    """
    refuse_pickle(source)
    if source.is_file():
        file = open_file(source)
        return SafetensorsCheckpoint(source, None, (file,), read_header(file))
    if not source.is_dir():
        raise CheckpointError(source, "must be a directory or a .safetensors file that exists", "none")
    if (source / SINGLE).exists():
        file = open_file(source / SINGLE, source)
        notes = passed_over(str(source), [SINGLE], [path.name for path in source.iterdir()])
        return SafetensorsCheckpoint(source, None, (file,), read_header(file), notes)
    if (source / INDEX).exists():
        return _open_sharded(source)
    raise _nothing_to_open(source)


def refuse_pickle(source: Path) -> None:
    """Refuse a file by its name.

    Raises:
        CheckpointError: it ends like a pickle.
    """
    if source.name.lower().endswith(PICKLES) and not source.is_dir():
        raise CheckpointError(source, "must be safetensors (a pickle can run code)", source.name)


def _nothing_to_open(source: Path) -> CheckpointError:
    names = sorted(path.name for path in source.iterdir())
    if others := [name for name in names if name.endswith(".safetensors")]:
        return CheckpointError(source, f"must hold {SINGLE} or {INDEX}", ", ".join(others))
    if pickles := [name for name in names if name.lower().endswith(PICKLES)]:
        rule = "must hold safetensors (a pickle can run code and is refused)"
        return CheckpointError(source, rule, ", ".join(pickles))
    return CheckpointError(source, f"must hold {SINGLE} or {INDEX}", ", ".join(names) or "nothing")


def _open_sharded(source: Path) -> SafetensorsCheckpoint:
    index = source / INDEX
    text = read_all(open_file(index, source), MAX_JSON_BYTES)
    shard_of = read_index(index, text)
    files = {}
    for shard in sorted(set(shard_of.values())):
        if not (source / shard).exists():
            rule = "must name only shards that exist"
            raise CheckpointError(index, rule, f"missing shard {shard!r}")
        files[shard] = open_file(source / shard, source)
    tensors = join_shards(index, shard_of, files)
    notes = passed_over(str(source), [INDEX, *files], [path.name for path in source.iterdir()])
    return SafetensorsCheckpoint(source, None, tuple(files.values()), tensors, notes)


def passed_over(source: str, read: Sequence[str], there: Sequence[str]) -> tuple[str, ...]:
    """Return a note on the weight files of a directory that were not read; none where there are none.

    Args:
        source: name of the checkpoint.
        read: names of the files that were read.
        there: names of all files beside them.
    """
    others = sorted(name for name in set(there) - set(read) if name.endswith(WEIGHTS) or name in (INDEX, ADAPTER))
    if not others:
        return ()
    which = f"{SINGLE} was" if SINGLE in read else f"the {len(read) - 1} shards of {INDEX} were"
    also = ", as transformers does where both are there" if INDEX in others else ""
    return (f"{source}: {which} read{also}; beside it, and not read: {named(others)}.",)


def read_index(index: Path, text: bytes) -> dict[str, str]:
    """Return the shard of every tensor, by the index.

    Args:
        index: name of the index in messages.
        text: content of the index.

    Raises:
        CheckpointError: it is no index, or names a file elsewhere than beside it.
    """
    shard_of = parse_json_object(index, text).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(index, "must have a weight_map of tensor to shard", shard_of)
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            rule = "must be in a .safetensors file of the same directory"
            raise CheckpointError(index, rule, repr(shard), tensor=name)
    return shard_of


def _is_plain_name(shard: str) -> bool:
    """Return whether the name can only mean a safetensors file of its own directory, on any system."""
    plain = shard.isprintable() and PureWindowsPath(shard).name == shard
    return plain and shard.endswith(".safetensors")


def join_shards(index: Path, shard_of: Mapping[str, str], files: Mapping[str, WeightFile]) -> dict[str, TensorInfo]:
    """Return the tensors of all shards, which must be exactly those of the index.

    Raises:
        CheckpointError: a tensor is in another shard than the index says, in two, in none, or only in a shard.
    """
    headers = {shard: read_header(file) for shard, file in files.items()}
    for shard, header in headers.items():
        for name in header:
            if shard_of.get(name) != shard:
                rule = f"must be in the file that {INDEX} names, {shard_of.get(name)!r}"
                raise CheckpointError(files[shard].path, rule, repr(shard), tensor=name)
    for name, shard in sorted(shard_of.items()):
        if name not in headers[shard]:
            rule = f"must be in its shard {shard!r}"
            raise CheckpointError(index, rule, "no such tensor", tensor=name)
    return {name: headers[shard_of[name]][name] for name in sorted(shard_of)}
