"""The files of an audit are one set: faults at every moment of writing leave the old one, or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair
from unforgotten.audit.outputs import write
from unforgotten.audit.outputs.write import FILES, check_files

FULL = OSError(errno.ENOSPC, "No space left on device")


def save(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(0)
    w: NDArray[Any] = rng.normal(size=(16, 64)).astype(np.float32)
    moved = w + np.random.default_rng(seed).normal(0, 0.1, w.shape).astype(np.float32)
    folder.mkdir()
    save_file({"layers.0.weight": moved if seed else w}, folder / "model.safetensors")
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return save(tmp_path / "t", 0), save(tmp_path / "u", 1)


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_audit_json_names_the_digest_of_every_other_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = audit_pair(*pair, ["int8-row"], tmp_path / "out")
    files = content(tmp_path / "out")
    assert set(files) == set(FILES)
    assert set(result["files"]) == set(FILES) - {"audit.json"}
    for name, digest in result["files"].items():
        assert hashlib.sha256(files[name]).hexdigest() == digest
    check_files(tmp_path / "out")


@pytest.mark.parametrize("name", sorted(set(FILES) - {"audit.json"}))
@pytest.mark.parametrize("fault", ["other", "missing"])
def test_a_mix_of_two_audits_is_found(name: str, fault: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    audit_pair(*pair, ["int8-row"], tmp_path / "out")
    audit_pair(*pair, ["nf4-b64"], tmp_path / "other")
    place = tmp_path / "out" / name
    place.unlink()
    if fault == "other":
        os.rename(tmp_path / "other" / name, place)
    with pytest.raises(CheckpointError, match=r"must have the SHA-256 of audit\.json"):
        check_files(tmp_path / "out")


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


BUILDERS = ("render", "table", "render_model_card", "render_sarif", "render_junit", "to_json")


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("old", [True, False])
def test_full_disk_while_building_leaves_what_was_there(
    builder: str, old: bool, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if old:
        audit_pair(*pair, ["nf4-b64"], out)
    before = content(out)
    assert set(before) == (set(FILES) if old else set())
    monkeypatch.setattr(write, builder, _raise(FULL))
    with pytest.raises(OSError, match="No space left"):
        audit_pair(*pair, ["int8-row"], out)
    assert content(out) == before


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full disk", "interrupt"])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("moves", range(len(FILES)))
def test_a_fault_between_the_moves_takes_them_back(
    moves: int,
    old: bool,
    error: BaseException,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After `moves` files are in place the next move fails, once."""
    out = tmp_path / "out"
    if old:
        audit_pair(*pair, ["nf4-b64"], out)
    before = content(out)
    real, calls = os.replace, iter(range(100))

    def replace(source: Path, place: Path) -> None:
        if next(calls) == moves:
            raise error
        real(source, place)

    monkeypatch.setattr("unforgotten.records.files.os.replace", replace)
    with pytest.raises(type(error)):
        audit_pair(*pair, ["int8-row"], out)
    assert content(out) == before
    if old:
        check_files(out)


def test_a_killed_process_leaves_whole_files_and_a_mix_that_is_found(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be taken back, as after a power cut: the moves stop and nothing runs after them."""
    out, other = tmp_path / "out", tmp_path / "other"
    audit_pair(*pair, ["nf4-b64"], out)
    before = content(out)
    audit_pair(*pair, ["int8-row"], other)
    after = content(other)
    for moved, name in enumerate(FILES[:-1], 1):
        (out / name).write_bytes(after[name])
        assert {n: c in (before[n], after[n]) for n, c in content(out).items()} == dict.fromkeys(FILES, True)
        with pytest.raises(CheckpointError):
            check_files(out)
        assert moved < len(FILES)
    (out / FILES[-1]).write_bytes(after[FILES[-1]])
    check_files(out)


def test_links_out_of_the_directory_are_replaced_and_not_followed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("mine")
    out.mkdir()
    (out / "audit.json").symlink_to(victim)
    audit_pair(*pair, ["int8-row"], out)
    assert victim.read_text() == "mine"
    assert not (out / "audit.json").is_symlink()
    assert json.loads((out / "audit.json").read_text())["compared"] == "weights"
