"""The result rows of a run, read and indexed. Nothing here, or in any other file of `reports`, measures anything."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

Z95 = 1.96
# (types, may be null); the contract of a row, which other programs read, plus what `run` adds.
REQUIRED: Mapping[str, tuple[tuple[type, ...], bool]] = {
    "model": ((str,), False),
    "method": ((str,), True),
    "storage": ((str,), True),
    "lr": ((int, float), True),
    "seed": ((int,), False),
    "format": ((str,), False),
    "metric": ((str,), False),
    "value": ((int, float), True),
    "stderr": ((int, float), True),
    "n": ((int,), True),
    "config": ((str,), False),
    "revision": ((str,), False),
    "dtypes": ((dict,), False),
    "device": ((str,), False),
}
OPTIONAL: Mapping[str, tuple[tuple[type, ...], bool]] = {
    "steps": ((int,), True),
    "stopped": ((str,), True),
    "interval": ((list,), True),
    "profile": ((str,), True),
    "corpus": ((str,), True),
    "products": ((str,), True),
    "rounding": ((str,), True),
    "processor": ((str,), True),
}
Key = tuple[str, str, str | None, str | None, str]


@dataclass(frozen=True)
class Row:
    """One measurement: `metric` of one model in one format."""

    model: str
    metric: str
    value: float | None
    format: str
    method: str | None = None
    storage: str | None = None
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    lr: float | None = None
    steps: int | None = None
    stopped: str | None = None
    seed: int = 0
    config: str = ""
    revision: str = ""
    device: str = ""
    profile: str | None = None
    corpus: str | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    products: str | None = None
    rounding: str | None = None
    processor: str | None = None

    @property
    def key(self) -> Key:
        """What makes a row unique in a run."""
        return (self.metric, self.model, self.method, self.storage, self.format)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95 % interval: the row's own, else value ± 1.96 stderr, else none."""
        if self.interval is not None:
            return self.interval
        if self.value is None or self.stderr is None:
            return None
        return (self.value - Z95 * self.stderr, self.value + Z95 * self.stderr)


@dataclass(frozen=True)
class Run:
    """All rows of one run, and the configuration echoed beside them where it is there."""

    rows: tuple[Row, ...]
    sha256: str
    settings: Mapping[str, Any] | None = None

    @cached_property
    def _index(self) -> dict[Key, Row]:
        return {row.key: row for row in self.rows}

    def get(
        self, metric: str, model: str, method: str | None = None, storage: str | None = None, format: str = "none"
    ) -> Row | None:
        """Return the row of a metric for a model in a format, or None where the run has none."""
        return self._index.get((metric, model, method, storage, format))

    def value(
        self, metric: str, model: str, method: str | None = None, storage: str | None = None, format: str = "none"
    ) -> float | None:
        """Return the value of a metric for a model in a format; None without a row or where it says undefined."""
        row = self.get(metric, model, method, storage, format)
        return None if row is None else row.value

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods of the unlearned models, in the order of the rows."""
        return _unique(row.method for row in self.rows if row.model == "unlearned")

    @cached_property
    def storages(self) -> tuple[str, ...]:
        """Storage arms of the unlearned models, in the order of the rows."""
        return _unique(row.storage for row in self.rows if row.model == "unlearned")

    @cached_property
    def formats(self) -> tuple[str, ...]:
        """Formats of any model, without "none", in the order of the rows."""
        return _unique(row.format for row in self.rows if row.format != "none")

    @cached_property
    def arms(self) -> tuple[tuple[str, str], ...]:
        """(method, storage) of every unlearned model that has rows."""
        have = {(row.method, row.storage) for row in self.rows if row.model == "unlearned"}
        return tuple((m, s) for m in self.methods for s in self.storages if (m, s) in have)

    @property
    def label(self) -> str:
        """Profile and seed."""
        first = self.rows[0]
        return f"{first.profile or 'run'}, seed {first.seed}"


def select(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Rows whose fields equal all of `wanted`; a tuple means any of its members."""
    return [row for row in rows if all(_matches(getattr(row, k), v) for k, v in wanted.items())]


def read_rows(folder: Path) -> list[Row]:
    """Read and check the rows of `folder/rows.jsonl`.

    Raises:
        ValueError: the folder or file is missing, or a line breaks a rule; one line that names file, line and rule.
    """
    path = _rows_path(folder)
    rows = list(_parse(path, path.read_bytes()))
    _check_one_run(path, rows)
    return rows


def read_run(folder: Path) -> Run:
    """Read a run: its rows with their SHA-256, and `config.json` where it is there.

    Raises:
        ValueError: as `read_rows`; or `config.json` is not a JSON object.
    """
    rows = _only_recovery(read_rows(folder))
    digest = hashlib.sha256(_rows_path(folder).read_bytes()).hexdigest()
    return Run(tuple(rows), digest, _read_settings(folder / "config.json"))


def _only_recovery(rows: Sequence[Row]) -> list[Row]:
    """Make each rho undefined where the quantized target knows no more than the unlearned model.

    Both the rise and its limit are then falls, and their quotient says nothing of memory coming back.
    """
    values = {row.key: row.value for row in rows}

    def without_reference(row: Row) -> bool:
        metric = row.metric.removeprefix("rho_")
        target = values.get((metric, "target", None, None, row.format))
        unlearned = values.get((metric, row.model, row.method, row.storage, "none"))
        return target is not None and unlearned is not None and target <= unlearned

    return [
        replace(row, value=None, interval=None, stderr=None)
        if row.metric.startswith("rho_") and without_reference(row)
        else row
        for row in rows
    ]


def _matches(value: object, wanted: object) -> bool:
    return value in wanted if isinstance(wanted, tuple) else value == wanted


def _unique(names: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _rows_path(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder}: must be the directory of a run, got no directory there")
    path = folder / "rows.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: must exist, got a directory without rows.jsonl")
    return path


def _parse(path: Path, content: bytes) -> Iterable[Row]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                yield _row(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from None


def _row(line: bytes) -> Row:
    fields = _object(line)
    for name in REQUIRED:
        if name not in fields:
            raise ValueError(f"a row must have the field {name!r}, got {', '.join(fields) or 'no fields'}")
    values = {
        name: _checked(name, fields[name], *rule)
        for name, rule in (*REQUIRED.items(), *OPTIONAL.items())
        if name in fields
    }
    values["interval"] = _interval(values.get("interval"))
    return Row(**values)


def _object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except ValueError:
        shown = line.decode("utf-8", "replace")[-40:]
        raise ValueError(f"a row must be one JSON object, got a broken line ending in {shown!r}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"a row must be one JSON object, got {type(fields).__name__}")
    return fields


def _checked(name: str, value: Any, types: tuple[type, ...], nullable: bool) -> Any:
    if value is None and nullable:
        return None
    if not isinstance(value, types) or isinstance(value, bool):
        rule = " or ".join(t.__name__ for t in types) + (" or null" if nullable else "")
        raise ValueError(f"{name} must be {rule}, got {name}={value!r}")
    if isinstance(value, int | float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite or null, got {name}={value!r}")
    return value


def _interval(pair: list[Any] | None) -> tuple[float, float] | None:
    """Return the two ends of an interval; None without one, and where an end is open."""
    if pair is None:
        return None
    if len(pair) != 2:
        raise ValueError(f"interval must hold two numbers, got interval={pair!r}")
    low, high = (_checked("interval", end, (int, float), True) for end in pair)
    return None if low is None or high is None else (low, high)


def _check_one_run(path: Path, rows: list[Row]) -> None:
    if not rows:
        raise ValueError(f"{path}: must hold at least one row, got none")
    runs = sorted({(row.config, row.seed) for row in rows})
    if len(runs) > 1:
        raise ValueError(f"{path}: must hold the rows of one run, got (config, seed) = {runs}")
    seen: set[Key] = set()
    for row in rows:
        if row.key in seen:
            raise ValueError(f"{path}: must hold each measurement once, got two rows of {row.key}")
        seen.add(row.key)


def _read_settings(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_bytes())
    except ValueError:
        raise ValueError(f"{path}: must be a JSON object, got broken JSON") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(settings).__name__}")
    return settings
