"""A model of the Hugging Face Hub: `org/name[@revision]`, of which only the ranges that are asked for are fetched.

The `config.json` is fetched too: it says how the weights are stored. What is in the Hub's own cache is read from there. The rest is fetched in chunks into a sparse file of ours, beside a
journal of the chunks that have come, so an audit that was cut goes on where it was, and works offline afterwards.

    checkpoint = open_hub(hub_name("org/name@main"))
    checkpoint.revision  # the commit that `main` was
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from unforgotten.audit.sources.checkpoint import (
    INDEX,
    SINGLE,
    SafetensorsCheckpoint,
    join_shards,
    passed_over,
    read_index,
)
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.files import HASH_BYTES, WeightFile, open_file, read_all
from unforgotten.audit.sources.hostile_json import MAX_JSON_BYTES, parse_json_object
from unforgotten.audit.sources.hub_client import get_json, is_offline, need_hub
from unforgotten.audit.sources.model_config import CONFIG, MAX_CONFIG_BYTES
from unforgotten.audit.sources.remote_file import RemoteFile
from unforgotten.audit.sources.safetensors_header import MAX_COUNT, TensorInfo, read_header
from unforgotten.records.files import write_text

NAME = re.compile(r"([A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95})(?:@([\w./\-]{1,255}))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class HubName(NamedTuple):
    """`repo` is `org/name`; `revision` a branch, tag or commit, None for `main`."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


class HubEntry(NamedTuple):
    """One file of a repository: bytes, and the SHA-256 that the Hub states for a large file."""

    size: int
    sha256: str | None


class Listing(NamedTuple):
    """A commit and its files of safetensors, indexes and `config.json`, by name."""

    commit: str
    files: Mapping[str, HubEntry]


def hub_name(text: str) -> HubName | None:
    """Take `org/name[@revision]` apart; None if the text has another form."""
    match = NAME.fullmatch(text)
    if match is None or ".." in text or "--" in match[1]:
        return None
    return HubName(match[1], match[2])


@dataclass(frozen=True)
class HubCheckpoint:
    """A model of the Hub; `sha256` is over the files in the order of their names, each held against the Hub's own.

    Attributes:
        source: name as given.
        stated: SHA-256 of each file, as the Hub states it, where it does.
        inner: checkpoint of the model's tensors, read by range.
        model_config: what `config.json` says; empty where there is none.
    """

    source: str
    stated: tuple[str | None, ...]
    inner: SafetensorsCheckpoint
    model_config: Mapping[str, object] = field(default_factory=dict)

    @property
    def revision(self) -> str | None:
        """The commit."""
        return self.inner.revision

    @property
    def notes(self) -> tuple[str, ...]:
        """See `notes`."""
        return self.inner.notes

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """See `Checkpoint.tensors`."""
        return self.inner.tensors

    def read(self, name: str) -> NDArray[Any]:
        """See `Checkpoint.read`."""
        return self.inner.read(name)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """See `Checkpoint.read_rows`."""
        return self.inner.read_rows(name, start, stop)

    def read_flat(self, name: str, start: int, stop: int, buffer: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """See `Checkpoint.read_flat`."""
        return self.inner.read_flat(name, start, stop, buffer)

    def check(self, name: str) -> None:
        """See `Checkpoint.check`."""
        self.inner.check(name)

    def sha256(self) -> str:
        """Return the SHA-256 over the files, fetched whole for it, as `cat FILES | sha256sum`.

        Raises:
            CheckpointError: a file is not the one that the Hub states; what was fetched of it is dropped.
        """
        total = hashlib.sha256()
        for file, stated in zip(self.inner.files, self.stated, strict=True):
            own = hashlib.sha256()
            for start in range(0, file.size, HASH_BYTES):
                part = file.read(start, min(HASH_BYTES, file.size - start)).data
                total.update(part)
                own.update(part)
            if stated is not None and own.hexdigest() != stated:
                if isinstance(file, RemoteFile):
                    file.drop()
                rule = f"must have the SHA-256 {stated} that the Hub states"
                raise CheckpointError(file.path, rule, own.hexdigest())
        return total.hexdigest()


def open_hub(name: HubName) -> HubCheckpoint:
    """Find a model on the Hub or, offline, in what was fetched before, and check the headers of its files.

    Raises:
        CheckpointError: `huggingface_hub` is missing; there is no such model, or no safetensors in it; a file breaks
            a rule of its format; offline, something but the configuration is not in the cache.
    """
    need_hub(str(name))
    listing = _listing(name)
    if SINGLE in listing.files:
        files: dict[str, WeightFile] = {SINGLE: _file(name, listing, SINGLE)}
        tensors = read_header(files[SINGLE])
    elif INDEX in listing.files:
        index = _file(name, listing, INDEX)
        shard_of = read_index(index.path, read_all(index, MAX_JSON_BYTES))
        files = {shard: _file(name, listing, shard) for shard in sorted(set(shard_of.values()))}
        tensors = join_shards(index.path, shard_of, files)
    else:
        rule = f"must hold {SINGLE} or {INDEX}"
        raise CheckpointError(str(name), rule, ", ".join(sorted({*listing.files} - {CONFIG})) or "no safetensors")
    notes = passed_over(str(name), [INDEX, *files] if SINGLE not in files else [SINGLE], list(listing.files))
    inner = SafetensorsCheckpoint(str(name), listing.commit, tuple(files.values()), tensors, notes)
    stated = tuple(listing.files[shard].sha256 for shard in files)
    return HubCheckpoint(str(name), stated, inner, _model_config(name, listing))


def _model_config(name: HubName, listing: Listing) -> Mapping[str, object]:
    """Return what `config.json` says; empty where there is none, or offline where it was not fetched before."""
    if CONFIG not in listing.files:
        return {}
    file = _file(name, listing, CONFIG)
    try:
        text = read_all(file, MAX_CONFIG_BYTES)
    except CheckpointError:
        if is_offline():
            return {}
        raise
    return parse_json_object(file.path, text)


def _home(name: HubName) -> Path:
    """Return the directory in which we keep what was fetched of a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "unforgotten" / f"models--{name.repo.replace('/', '--')}"


def _listing(name: HubName) -> Listing:
    """Return the files of a revision: asked for and written down online, looked up offline."""
    record = _home(name) / "revisions" / (quote(name.revision or "main", safe="") + ".json")
    if is_offline():
        if record.is_file():
            text = read_all(open_file(record), MAX_JSON_BYTES)
            return _parse_listing(name, parse_json_object(record, text))
        return _cached_listing(name)
    found = get_json(
        f"api/models/{name.repo}/revision/{quote(name.revision or 'main', safe='')}", {"blobs": "true"}, str(name)
    )
    listing = _parse_listing(name, found)
    kept = {
        "sha": listing.commit,
        "siblings": [
            {"rfilename": file, "size": entry.size, "lfs": {"sha256": entry.sha256}}
            for file, entry in listing.files.items()
        ],
    }
    for place in (record, record.with_name(listing.commit + ".json")):
        write_text(place, json.dumps(kept))
    return listing


def _parse_listing(name: HubName, found: Mapping[str, object]) -> Listing:
    commit, siblings = found.get("sha"), found.get("siblings")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise CheckpointError(str(name), "must have a commit of 40 digits", repr(commit))
    if not isinstance(siblings, list):
        raise CheckpointError(str(name), "must have a list of files", repr(siblings))
    return Listing(commit, dict(_entries(name, siblings)))


def _entries(name: HubName, siblings: list[object]) -> Iterable[tuple[str, HubEntry]]:
    for sibling in siblings:
        file = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if not isinstance(sibling, dict) or not isinstance(file, str):
            raise CheckpointError(str(name), "must name its files", repr(sibling))
        if "/" in file or not (file.endswith(".safetensors") or file in (INDEX, CONFIG)):
            continue
        lfs, size = sibling.get("lfs"), sibling.get("size")
        stated = lfs.get("sha256") if isinstance(lfs, dict) else None
        if type(size) is not int or not 0 <= size <= MAX_COUNT:
            raise CheckpointError(f"{name}/{file}", "must have a size", repr(size))
        if stated is not None and not (isinstance(stated, str) and SHA256.fullmatch(stated)):
            raise CheckpointError(f"{name}/{file}", "must have a SHA-256", repr(stated))
        yield file, HubEntry(size, stated)


def _cached_listing(name: HubName) -> Listing:
    """Return the files of a snapshot in the Hub's own cache."""
    from huggingface_hub import try_to_load_from_cache

    for file in (SINGLE, INDEX):
        found = try_to_load_from_cache(name.repo, file, revision=name.revision)
        if isinstance(found, str):
            snapshot = Path(found).parent
            names = [p for p in snapshot.iterdir() if p.suffix == ".safetensors" or p.name == CONFIG]
            sizes = {p.name: HubEntry(p.stat().st_size, None) for p in [Path(found), *names]}
            return Listing(snapshot.name, sizes)
    rule = "must be a directory that exists, or in the cache of the Hub while offline"
    raise CheckpointError(str(name), rule, "neither")


def _file(name: HubName, listing: Listing, file: str) -> WeightFile:
    """Return one file of the model: of the Hub's own cache if it is there, or fetched by range."""
    from huggingface_hub import try_to_load_from_cache

    if file not in listing.files:
        raise CheckpointError(str(name), "must hold every shard of its index", f"no {file!r}")
    cached = try_to_load_from_cache(name.repo, file, revision=listing.commit)
    if isinstance(cached, str):
        return open_file(Path(cached), Path(cached).parent)
    shown = Path(f"{name.repo}@{listing.commit[:12]}") / file
    url = f"{name.repo}/resolve/{listing.commit}/{quote(file)}"
    place = _home(name) / listing.commit / file
    return RemoteFile(shown, listing.files[file].size, url, place)
