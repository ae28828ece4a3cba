"""What the user names, opened: a directory or file of safetensors, a Hub model, an adapter over its base, a GGUF file."""

from __future__ import annotations

from pathlib import Path

from unforgotten.audit.codes.compare import scheme_of_checkpoint
from unforgotten.audit.sources.checkpoint import Checkpoint, open_checkpoint, refuse_pickle
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.gguf import is_gguf, open_gguf
from unforgotten.audit.sources.hub import HubName, hub_name, open_hub
from unforgotten.audit.sources.matching.comparable import comparable
from unforgotten.audit.sources.peft import is_adapter, open_adapter, read_adapter_config

BASE_MARK = "::"  # ADAPTER::BASE


def open_pair(target: Path | str, unlearned: Path | str) -> tuple[Checkpoint, Checkpoint]:
    """Open both checkpoints of an audit, the second under the first one's names, see `comparable`.

    An adapter that names the target as its base is merged over the target itself.

    Raises:
        CheckpointError: see `open_source`; one of the two alone is GGUF, whose names and rows are its own, or is
            quantized already.
    """
    before = open_source(target)
    after = open_source(unlearned, base=before)
    stated = [scheme_of_checkpoint(checkpoint) for checkpoint in (before, after)]
    for own, other, checkpoint in zip(stated, stated[::-1], (before, after), strict=True):
        if own is not None and other is None:
            rule = "must not be quantized already unless the other one is too, by the same scheme"
            raise CheckpointError(checkpoint.source, rule, own.name)
    if is_gguf(Path(before.source)) != is_gguf(Path(after.source)):
        rule = "must be GGUF if the target is, and only then: its names and the order of its rows differ"
        raise CheckpointError(after.source, rule, f"a pair with {before.source}")
    return comparable(before, after)


def open_source(source: Path | str, base: Checkpoint | None = None) -> Checkpoint:
    """Open what the user named; a local path goes before a name of the Hub.

    Args:
        source: a directory of safetensors, one safetensors or GGUF file, `org/name[@revision]`, a PEFT adapter
            directory, or `ADAPTER::BASE` with any of the others for the base.
        base: a checkpoint that an adapter may name as its base.

    Raises:
        CheckpointError: nothing is there, or it breaks a rule of its format.
    """
    path = Path(source)
    if path.exists():
        if is_gguf(path):
            return open_gguf(path)
        return _open_adapter(path, base) if is_adapter(path) else open_checkpoint(path)
    adapter, mark, under = str(source).partition(BASE_MARK)
    if mark and adapter and under:
        if not is_adapter(Path(adapter)):
            raise CheckpointError(adapter, "must be a directory of a PEFT adapter", "none")
        return open_adapter(Path(adapter), open_source(under))
    refuse_pickle(path)
    name = hub_name(str(source))
    return open_checkpoint(path) if name is None else open_hub(name)


def _open_adapter(path: Path, base: Checkpoint | None) -> Checkpoint:
    config, _ = read_adapter_config(path)
    if base is not None and _names(config.base, config.revision, base):
        return open_adapter(path, base)
    name = hub_name(config.base)
    if name is None or Path(config.base).exists():
        rule = (
            "must name the target or a model of the Hub as its base (a path in a file is not followed; "
            f"give it yourself as {path.name}{BASE_MARK}BASE)"
        )
        raise CheckpointError(config.path, rule, repr(config.base))
    return open_adapter(path, open_hub(HubName(name.repo, config.revision or name.revision)))


def _names(wanted: str, revision: str | None, base: Checkpoint) -> bool:
    """Return whether the base that a configuration names is this very checkpoint."""
    if not wanted:
        return False
    if base.revision is not None:
        repo = str(base.source).partition("@")[0]
        return wanted == repo and revision in (None, base.revision)
    return Path(wanted).exists() and Path(wanted).resolve() == Path(base.source).resolve()
