"""Models of the Hub, from a server in this process: ranges, resumption, offline, faults; nothing leaves the machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from unforgotten.audit import CheckpointError, audit_pair, open_source

pytest.importorskip("huggingface_hub", reason="the client")

from huggingface_hub import constants

from unforgotten.audit.sources import hub_client
from unforgotten.verification.domains.hub_server import COMMIT, REPO, Served

Tensors = dict[str, NDArray[Any]]
OTHER = "b" * 40
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 1 << 12
MATRIX = "model.layers.0.q_proj.weight"


def tensors(seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    names = [f"model.layers.{i}.q_proj.weight" for i in range(3)]
    return {n: rng.normal(size=(64, 128)).astype(np.float32) for n in names}


def put_sharded(served: Served, content: Tensors) -> None:
    shard_of = {name: f"model-{i}.safetensors" for i, name in enumerate(content)}
    served.files = {s: save({n: content[n]}) for n, s in shard_of.items()}
    served.files[INDEX] = json.dumps({"weight_map": shard_of}).encode()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("revision", ["", "@v2", "@refs/pr/1", f"@{COMMIT}"])
def test_tensors_and_digest_are_those_of_the_files(sharded: bool, revision: str, served: Served) -> None:
    content = tensors()
    if sharded:
        put_sharded(served, content)
    else:
        served.files[SINGLE] = save(content)
    checkpoint = open_source(REPO + revision)
    assert checkpoint.revision == COMMIT
    assert checkpoint.source == REPO + revision
    for name, w in content.items():
        assert np.array_equal(checkpoint.read_rows(name, 3, 9), w[3:9])
        assert np.array_equal(checkpoint.read(name), w)
    weights = [served.files[f] for f in sorted(served.files) if f != INDEX]
    assert checkpoint.sha256() == hashlib.sha256(b"".join(weights)).hexdigest()


def test_only_what_is_needed_is_fetched(served: Served) -> None:
    content = tensors()
    served.files[SINGLE] = save(content)
    checkpoint = open_source(REPO)
    assert {stop - start for _, start, stop in served.ranges} == {CHUNK}  # the header's
    served.ranges.clear()
    row = checkpoint.read_rows(MATRIX, 40, 41)
    assert np.array_equal(row, content[MATRIX][40:41])
    assert sum(stop - start for _, start, stop in served.ranges) <= 2 * CHUNK
    served.ranges.clear()
    checkpoint.read_rows(MATRIX, 40, 41)
    open_source(REPO)
    assert not served.ranges


def test_bad_header_is_refused_before_the_rest_is_fetched(served: Served) -> None:
    served.files[SINGLE] = b"PK\x03\x04" + bytes(40 * CHUNK)
    with pytest.raises(CheckpointError, match=r"model\.safetensors must be safetensors .*a zip"):
        open_source(REPO)
    assert sum(stop - start for _, start, stop in served.ranges) == CHUNK


def test_breaks_are_passed_over_and_no_byte_is_fetched_twice(served: Served) -> None:
    served.files[SINGLE] = save(tensors())
    checkpoint = open_source(REPO)
    served.ranges.clear()
    served.statuses, served.cut = [503], [3 * CHUNK + 5, CHUNK // 2, 100]
    assert np.array_equal(checkpoint.read(MATRIX), tensors()[MATRIX])
    starts = [start for _, start, _ in served.ranges]
    assert starts == sorted(starts)
    assert starts[1] - starts[0] == 3 * CHUNK  # whole chunks stay, the broken one comes again


def test_interrupted_audit_goes_on_where_it_was(served: Served) -> None:
    served.files[SINGLE] = save(tensors())
    checkpoint = open_source(REPO)
    served.cut = [2 * CHUNK] * hub_client.ATTEMPTS
    served.statuses = []
    with pytest.raises(CheckpointError, match=r"org/model.v1@a{12}/model.safetensors must be .*reach"):
        checkpoint.sha256()
    served.ranges.clear()
    checkpoint = open_source(REPO)
    assert checkpoint.sha256() == hashlib.sha256(served.files[SINGLE]).hexdigest()
    assert served.ranges[0][1] >= 2 * CHUNK * hub_client.ATTEMPTS


def test_what_was_fetched_works_offline(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    put_sharded(served, tensors())
    digest = open_source(f"{REPO}@v2").sha256()
    served.files.clear()
    offline(monkeypatch)
    for name in (f"{REPO}@v2", f"{REPO}@{COMMIT}"):
        again = open_source(name)
        assert again.sha256() == digest
        assert np.array_equal(again.read(MATRIX), tensors()[MATRIX])


def test_offline_what_is_missing_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.files[SINGLE] = save(tensors())
    open_source(REPO)
    offline(monkeypatch)
    checkpoint = open_source(REPO)
    with pytest.raises(CheckpointError, match=r"model\.safetensors must be in the cache .*missing"):
        checkpoint.sha256()
    with pytest.raises(CheckpointError, match=r"other/model must be a directory .*cache of the Hub"):
        open_source("other/model")


def snapshot(root: Path, content: Tensors) -> None:
    """The Hub's own cache, as `hf download` leaves it: links to blobs."""
    repo = root / "home/hub" / f"models--{REPO.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{OTHER}"):
        (repo / folder).mkdir(parents=True)
    save_file(content, repo / "blobs/123")
    (repo / "refs/main").write_text(OTHER)
    (repo / f"snapshots/{OTHER}" / SINGLE).symlink_to("../../blobs/123")


def test_own_cache_of_the_hub_is_read(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot(tmp_path, tensors())
    offline(monkeypatch)
    for name in (REPO, f"{REPO}@{OTHER}"):
        checkpoint = open_source(name)
        assert checkpoint.revision == OTHER
        assert np.array_equal(checkpoint.read(MATRIX), tensors()[MATRIX])
    folder = tmp_path / "home/hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / OTHER
    assert np.array_equal(open_source(folder).read(MATRIX), tensors()[MATRIX])


def test_wrong_bytes_are_refused_and_dropped(served: Served) -> None:
    served.files[SINGLE] = save(tensors())
    served.listing = served.default_listing()
    served.files[SINGLE] = save(tensors(1))
    checkpoint = open_source(REPO)
    with pytest.raises(CheckpointError, match=r"must have the SHA-256 .* that the Hub states"):
        checkpoint.sha256()
    served.files[SINGLE] = save(tensors())
    assert open_source(REPO).sha256() == hashlib.sha256(served.files[SINGLE]).hexdigest()


def bad_listings() -> dict[str, tuple[object, str]]:
    entry = {"rfilename": SINGLE, "size": 5}
    return {
        "no JSON": (b"<html>", "valid JSON"),
        "list": (b"[]", "JSON object"),
        "key twice": (b'{"sha": 1, "sha": 2}', "twice"),
        "no commit": ({"siblings": []}, "commit of 40 digits, got None"),
        "commit a path": ({"sha": "../" * 20, "siblings": []}, "commit of 40"),
        "no files": ({"sha": COMMIT}, "list of files"),
        "file no object": ({"sha": COMMIT, "siblings": [3]}, "name its files, got 3"),
        "no weights": ({"sha": COMMIT, "siblings": [{"rfilename": "a.bin"}]}, "no safetensors"),
        "no size": ({"sha": COMMIT, "siblings": [{**entry, "size": None}]}, "size, got None"),
        "size below 0": ({"sha": COMMIT, "siblings": [{**entry, "size": -1}]}, "size, got -1"),
        "SHA-256 a path": ({"sha": COMMIT, "siblings": [{**entry, "lfs": {"sha256": "../x"}}]}, "SHA-256, got '../x'"),
        "traversal": (
            {"sha": COMMIT, "siblings": [{**entry, "rfilename": f"../{SINGLE}"}]},
            "must hold model.safetensors",
        ),
        "other size": ({"sha": COMMIT, "siblings": [entry]}, "bytes of header length, got 5"),
        "shorter": ({"sha": COMMIT, "siblings": [{**entry, "size": 99}]}, "served by range"),
    }


@pytest.mark.parametrize("kind", bad_listings())
def test_bad_listing_is_refused_in_one_line(kind: str, served: Served) -> None:
    served.files[SINGLE] = save(tensors())
    served.listing, words = bad_listings()[kind]
    with pytest.raises(CheckpointError) as caught:
        open_source(REPO)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("org/model.v1")
    assert words in str(caught.value)


def test_missing_shard_is_named(served: Served) -> None:
    put_sharded(served, tensors())
    del served.files["model-1.safetensors"]
    with pytest.raises(CheckpointError, match=r"every shard .*'model-1\.safetensors'"):
        open_source(REPO)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"whole": True}, "must be served by range.*status 200"),
        ({"moved": 4}, "must be served by range"),
        ({"denied": 401}, "hf auth login.*status 401"),
        ({"denied": 403}, "hf auth login.*status 403"),
        ({"denied": 404}, "must be a directory that exists, or a model and revision of the Hub"),
        ({"denied": 410}, "reachable on the Hub, got status 410"),
        ({"denied": 503}, r"reachable on the Hub .*got status 503"),
        ({"denied": 302}, "reachable on the Hub"),
    ],
)
def test_faults_of_the_server_end_in_one_line(fault: dict[str, Any], words: str, served: Served) -> None:
    served.files[SINGLE] = save(tensors())
    for key, value in fault.items():
        setattr(served, key, value)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_source(REPO)
    assert str(caught.value).isprintable()


def test_full_disk_names_the_file(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.files[SINGLE] = save(tensors())

    def full(descriptor: int, content: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*model\.safetensors'"):
        open_source(REPO)


def test_pair_of_the_hub_equals_its_directories(served: Served, tmp_path: Path) -> None:
    served.files[SINGLE] = save(tensors())
    for name, seed in (("t", 0), ("u", 1)):
        (tmp_path / name).mkdir()
        save_file(tensors(seed), tmp_path / name / SINGLE)
    local = audit_pair(tmp_path / "t", tmp_path / "u", ["int4-row"])
    remote = audit_pair(REPO, tmp_path / "u", ["int4-row"])  # type: ignore[arg-type]
    assert remote["target"] == {**local["target"], "source": REPO, "revision": COMMIT}
    assert remote["formats"] == local["formats"]


def test_adapter_over_a_base_of_the_hub(served: Served, tmp_path: Path) -> None:
    served.files[SINGLE] = save(tensors())
    (tmp_path / "adapter").mkdir()
    part = "base_model.model.model.layers.0.q_proj.lora_"
    ones = {f"{part}A.weight": np.ones((1, 128), np.float32), f"{part}B.weight": np.ones((64, 1), np.float32)}
    save_file(ones, tmp_path / "adapter/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": REPO, "r": 1, "lora_alpha": 2}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    for base in (None, open_source(REPO)):
        merged = open_source(tmp_path / "adapter", base=base)
        assert merged.revision == COMMIT
        expected = (tensors()[MATRIX].astype(float) + 2).astype(np.float32)
        assert np.array_equal(merged.read(MATRIX), expected)


def test_command_line_says_what_to_install(tmp_path: Path) -> None:
    """Without the client, in a process of its own."""
    script = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'huggingface_hub' else real(n, *a)\n"
        "sys.argv = ['unforgotten', 'audit', 'org/a', 'org/b']\n"
        "from unforgotten.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "org/a must be a directory that exists" in done.stderr
    assert "pip install 'unforgotten[hub]'" in done.stderr
    assert not list(tmp_path.iterdir())
