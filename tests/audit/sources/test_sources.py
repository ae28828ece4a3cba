"""Sources on disk: links, changes while reading, names, layouts of shards; and how the command ends."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair, open_pair, open_source
from unforgotten.audit.sources.checkpoint import chunks, open_checkpoint, row_chunks
from unforgotten.audit.sources.files import open_file
from unforgotten.audit.sources.hostile_json import MAX_JSON_VALUES
from unforgotten.audit.sources.pairing import check_finite, pair, tensors_equal
from unforgotten.audit.sources.safetensors_header import MAX_DIMS, TensorInfo

Tensors = dict[str, NDArray[Any]]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MATRIX = "model.layers.0.q_proj.weight"
FORMATS = ["int8-row"]


def tensors(seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    names = ["model.embed_tokens.weight", MATRIX, "model.layers.1.q_proj.weight"]
    matrices = {n: rng.normal(size=(16, 64)).astype(np.float32) for n in names}
    return matrices | {"model.norm.weight": np.ones(64, np.float32)}


def save(folder: Path, content: Tensors) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(content, folder / SINGLE)
    return folder


def save_sharded(folder: Path, content: Tensors, count: int) -> Path:
    folder.mkdir(parents=True)
    shard_of = {n: f"model-{i % count}.safetensors" for i, n in enumerate(content)}
    for shard in set(shard_of.values()):
        save_file({n: w for n, w in content.items() if shard_of[n] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": shard_of}))
    return folder


@pytest.mark.parametrize("counts", [(1, 4), (3, 2), (4, 4)])
def test_layouts_of_shards_may_differ(counts: tuple[int, int], tmp_path: Path) -> None:
    whole = audit_pair(save(tmp_path / "t", tensors()), save(tmp_path / "u", tensors(1)), FORMATS)
    t, u = (save_sharded(tmp_path / f"{s}s", tensors(s), n) for s, n in enumerate(counts))
    assert audit_pair(t, u, FORMATS)["formats"] == whole["formats"]


@pytest.mark.parametrize("turned", [False, True])
def test_prefix_may_be_missing_on_one_side(turned: bool, tmp_path: Path) -> None:
    bare = {n.removeprefix("model."): w for n, w in tensors(1).items()}
    t, u = (tensors(), bare) if not turned else (bare, tensors())
    before, after = open_pair(save(tmp_path / "t", t), save(tmp_path / "u", u))
    assert list(before.tensors) == list(after.tensors)
    assert pair(before, after).quantized == tuple(n for n in sorted(t) if "q_proj" in n)
    own = {n.removeprefix("model."): w for n, w in u.items()}
    for name in before.tensors:
        w = own[name.removeprefix("model.")]
        assert np.array_equal(after.read(name), w)
        assert np.array_equal(after.read_rows(name, 2, 5), w[2:5])
    assert after.sha256() == open_checkpoint(tmp_path / "u").sha256()
    plain = audit_pair(
        save(tmp_path / "t2", tensors(int(turned))), save(tmp_path / "u2", tensors(int(not turned))), FORMATS
    )
    found = audit_pair(tmp_path / "t", tmp_path / "u", FORMATS)
    assert found["formats"] == plain["formats"]


def test_ambiguous_prefix_is_refused_with_the_name(tmp_path: Path) -> None:
    both = tensors() | {MATRIX.removeprefix("model."): tensors(2)[MATRIX]}
    t, u = save(tmp_path / "t", tensors()), save(tmp_path / "u", both)
    with pytest.raises(CheckpointError, match=r"'layers\.0\.q_proj\.weight' must be in both"):
        audit_pair(t, u, FORMATS)


def test_missing_tensor_is_named_in_the_checkpoint_that_lacks_it(tmp_path: Path) -> None:
    less = {n: w for n, w in tensors().items() if n != MATRIX}
    t, u = save(tmp_path / "t", tensors()), save(tmp_path / "u", less)
    for one, two in ((t, u), (u, t)):
        with pytest.raises(CheckpointError, match=f"^{u}: tensor '{MATRIX}' must be in both"):
            audit_pair(one, two, FORMATS)


@pytest.mark.parametrize(("most", "count"), [(1, 16), (256, 16), (1000, 6), (1 << 20, 1)])
def test_row_chunks_cover_the_tensor_once(most: int, count: int) -> None:
    info = TensorInfo(Path(), np.dtype("<f4"), (16, 64))
    ranges = list(row_chunks(info, most))
    assert len(ranges) == count
    assert [r for start, stop in ranges for r in range(start, stop)] == list(range(16))
    for empty in ((0, 64), (2**60, 0)):  # the fuzz found the second: it went through 2^36 ranges
        assert not list(row_chunks(TensorInfo(Path(), np.dtype("<f4"), empty)))


def test_zero_sizes_scalars_and_float8_are_read(tmp_path: Path) -> None:
    content: Tensors = {
        "a": np.ones((0, 3), np.float32),
        "b": np.array(2.5, np.float16),
        "c": np.ones(3, ml_dtypes.float8_e4m3fn),
        "d": np.ones((2, 0), np.int64),
    }
    checkpoint = open_source(save(tmp_path / "t", content))
    for name, w in content.items():
        found = checkpoint.read(name)
        assert (found.shape, found.dtype) == (w.shape, w.dtype)
        assert sum(part.size for part in chunks(checkpoint, name)) == w.size
        assert tensors_equal(checkpoint, name, checkpoint, name)
    assert checkpoint.read_rows("d", 1, 2).shape == (1, 0)


def test_a_weight_read_is_memory_of_its_own(tmp_path: Path) -> None:
    """Nothing is mapped: a file that is cut while it is mapped kills the process."""
    checkpoint = open_source(save(tmp_path / "t", tensors()))
    w = checkpoint.read(MATRIX)
    w[:] = 0
    assert np.array_equal(checkpoint.read(MATRIX), tensors()[MATRIX])
    os.truncate(tmp_path / "t" / SINGLE, 10)
    assert not w.any()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def rewrite(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


CHANGES: list[Callable[[Path], None]] = [cut, grow, rewrite, touch, to_fifo, to_link, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("use", ["read", "sha256", "rows"])
def test_file_that_changes_while_it_is_read_is_refused(
    change: Callable[[Path], None], use: str, tmp_path: Path
) -> None:
    checkpoint = open_source(save(tmp_path / "t", tensors()))
    uses: dict[str, Callable[[], object]] = {
        "read": lambda: checkpoint.read(MATRIX),
        "rows": lambda: checkpoint.read_rows(MATRIX, 3, 4),
        "sha256": checkpoint.sha256,
    }
    uses[use]()
    change(tmp_path / "t" / SINGLE)
    words = r"model\.safetensors must stay as it is while it is read|model\.safetensors"
    with pytest.raises((CheckpointError, OSError), match=words) as caught:
        uses[use]()
    assert "\n" not in str(caught.value)


def link(place: Path, to: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(to)


@pytest.mark.parametrize("file", [SINGLE, INDEX, "model-0.safetensors"])
@pytest.mark.parametrize("relative", [False, True])
def test_link_out_of_the_directory_is_refused(file: str, relative: bool, tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "t", tensors(), 2)
    if file == SINGLE:
        save_file(tensors(), folder / SINGLE)
    (folder / file).rename(tmp_path / "secret")
    link(folder / file, Path("../secret") if relative else tmp_path / "secret")
    with pytest.raises(CheckpointError, match=f"{file} must not be a link out of its directory"):
        open_source(folder)


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    folder = save_sharded(tmp_path / "t", tensors(), 2)
    (folder / "model-0.safetensors").rename(folder / "blob")
    link(folder / "model-0.safetensors", Path("blob"))
    link(tmp_path / "named-by-the-user", folder)
    assert np.array_equal(open_source(tmp_path / "named-by-the-user").read(MATRIX), tensors()[MATRIX])


def test_snapshot_may_link_to_blobs_of_its_own_repository_only(tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    snapshot = save(repo / "snapshots" / "1234", {})
    (repo / "blobs").mkdir()
    save_file(tensors(), repo / "blobs/x")
    save_file(tensors(), tmp_path / "other")
    link(snapshot / SINGLE, Path("../../blobs/x"))
    assert MATRIX in open_source(snapshot).tensors
    link(snapshot / SINGLE, Path("../../../other"))
    with pytest.raises(CheckpointError, match="link out of its directory"):
        open_source(snapshot)


def test_links_in_a_circle_are_no_file(tmp_path: Path) -> None:
    link(tmp_path / "a", tmp_path / "b")
    link(tmp_path / "b", tmp_path / "a")
    with pytest.raises(CheckpointError, match="a must be a file that exists"):
        open_file(tmp_path / "a")


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {MATRIX: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HOSTILE: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "zip of torch.save": (b"PK\x03\x04" + bytes(64), ("a pickle can run code", "a zip file")),
    "pickle, protocol 2": (b"\x80\x02}q\x00." + bytes(64), ("a pickle",)),
    "pickle, protocol 5": (b"\x80\x05\x95" + bytes(64), ("a pickle",)),
    "HTML page": (b"<!DOCTYPE html>" + bytes(64), ("an HTML page",)),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", ("Git LFS pointer",)),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(64), ("gzip",)),
    "33 axes": (raw(entry([1] * (MAX_DIMS + 1), [0, 4]), bytes(4)), (MATRIX, "at most 32")),
    "million axes": (raw(entry([1] * 10**6, [0, 4]), bytes(4)), (MATRIX, "of 1000000")),
    "axis of 400 digits": (raw(entry([10**400], [0, 4]), bytes(4)), (MATRIX, "integers >= 0")),
    "axis of 5000 digits": (raw(b'{"a": ' + b"9" * 5000 + b"}"), ("valid JSON", "4300 digits")),
    "offset of 400 digits": (raw(entry([1], [0, 10**400])), (MATRIX, "data_offsets")),
    "all memory behind a 0": (raw(entry([0, 2**40, 2**40], [0, 0])), (MATRIX, "multiply to")),
    "too many values": (raw(b"[" + b"0," * (MAX_JSON_VALUES + 1)), ("at most 4000000 JSON",)),
    "deep arrays": (raw(b'{"a":' + b"[" * 10**6), ("valid JSON",)),
    "nan for a shape": (
        raw(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)),
        ("'a'", "integers >= 0"),
    ),
    "offsets not aligned to their dtype overlap": (
        raw(
            {
                "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
            },
            bytes(6),
        ),
        ("'b'", "overlap"),
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, words = HOSTILE[kind]
    good = save(tmp_path / "good", tensors())
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / SINGLE).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        audit_pair(good, bad, FORMATS, tmp_path / "out")
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(bad / SINGLE))
    assert not [word for word in words if word not in message], message
    assert not (tmp_path / "out").exists()


def test_rows_without_end_and_without_bytes_are_passed_over(tmp_path: Path) -> None:
    content = raw({"a": {"dtype": "F32", "shape": [2**60, 0], "data_offsets": [0, 0]}})
    (tmp_path / SINGLE).write_bytes(content)
    checkpoint = open_source(tmp_path)
    check_finite(checkpoint, "a")
    assert tensors_equal(checkpoint, "a", checkpoint, "a")
    assert checkpoint.read_rows("a", 5, 2**59).shape == (2**59 - 5, 0)


@pytest.mark.parametrize("name", ["x.BIN", "x.Pt", "pytorch_model.bin", "x.ckpt"])
def test_pickles_are_refused_by_name_in_any_case(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(CheckpointError, match=f"pickle can run code.*got {name}"):
            open_source(source)


def test_offsets_need_no_alignment(tmp_path: Path) -> None:
    """The format does not ask for it, so a float may begin at an odd byte."""
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    values = np.array([1.5, -2], np.float32)
    (tmp_path / SINGLE).write_bytes(raw(header, bytes(3) + values.tobytes()))
    assert np.array_equal(open_source(tmp_path).read("b"), values)


@pytest.mark.parametrize("count", [1, 7])
def test_values_that_are_not_finite_are_counted(count: int, tmp_path: Path) -> None:
    content = tensors()
    content[MATRIX].reshape(-1)[5 : 5 + count] = [np.nan, np.inf, -np.inf, *[np.nan] * 4][:count]
    bad = save(tmp_path / "u", content)
    words = rf"'{MATRIX}' must be finite, got nan at flat index 5 \({count} of 1024 weights\)$"
    with pytest.raises(CheckpointError, match=words):
        audit_pair(save(tmp_path / "t", tensors()), bad, FORMATS)


PATCHED = """
import os, signal, sys, resource
import unforgotten.audit.run, unforgotten.audit.outputs.write as write
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs behind
{patch}
from unforgotten.cli import main
sys.argv = ["unforgotten", "audit", "t", "u", "--out", "out", "--formats", "int8-row", "--quiet"]
main()
"""
STOP = "os.kill(os.getpid(), signal.SIGINT)"
INTERRUPTED = "interrupted; nothing was written"
FULL = """
def full(*a): raise OSError(28, "No space left on device", "out")
write.pq.write_table = full
"""
PATCHES: dict[str, tuple[str, int, str]] = {
    "SIGINT while measuring": (f"unforgotten.audit.run.weights_leg = lambda *a, **k: {STOP}", 130, INTERRUPTED),
    "SIGINT while writing": (f"write.render = lambda *a: {STOP}", 130, INTERRUPTED),
    "full disk": ("resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))", 2, "too large"),
    "full disk at the table": (FULL, 2, "No space left"),
}


@pytest.mark.parametrize("kind", PATCHES)
def test_nothing_half_written_is_left(kind: str, tmp_path: Path) -> None:
    patch, code, words = PATCHES[kind]
    save(tmp_path / "t", tensors())
    save(tmp_path / "u", tensors(1))
    done = subprocess.run(
        [sys.executable, "-c", PATCHED.format(patch=patch)], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*")]


def test_bad_input_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    save(tmp_path / "t", tensors())
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / SINGLE).write_bytes(raw(entry([4, 4], [0, 64]), bytes(63)))
    command = [sys.executable, "-m", "unforgotten.cli", "audit", "t", "u", "--out", "out"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"u/{SINGLE}: tensor {MATRIX!r} must end within the 63 data bytes" in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_file_outside_is_opened(tmp_path: Path) -> None:
    """Whatever the index names, the process opens weight files inside the directory only."""
    folder = save_sharded(tmp_path / "t", tensors(), 2)
    (tmp_path / "secret.safetensors").write_bytes(raw({}))
    secrets = ["../secret.safetensors", str(tmp_path / "secret.safetensors"), "x/../../secret.safetensors"]
    opened: list[str] = []
    watching = [True]  # a hook cannot be taken away

    def watch(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and watching:
            opened.append(str(args[0]))

    sys.addaudithook(watch)
    for secret in secrets:
        (folder / INDEX).write_text(json.dumps({"weight_map": {MATRIX: secret}}))
        with pytest.raises(CheckpointError, match=r"must be in a \.safetensors file of the same dir"):
            open_source(folder)
    watching.clear()
    assert not [path for path in opened if "secret" in path]
    assert [path for path in opened if path.endswith(INDEX)]
