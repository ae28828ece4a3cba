"""The items of one model as a harness wrote them: a value for each metric and id.

In go a file, or the directory that a harness wrote for one model; out come values by metric and id, and notes on what was left
out. Which harness it was is told by the files:

| files | of |
| --- | --- |
| `*_EVAL.json` | OpenUnlearning |
| `METRIC/log.json` | MUSE |
| `samples_TASK_TIME.jsonl` | lm-eval, with `--log_samples`; of each task the newest |
| `*.jsonl` | any: objects `{"id": …, "metric": …, "value": …}` |
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")
MUSE_METRICS = ("verbmem_f", "knowmem_f", "knowmem_r")
MUSE_VALUE = "rougeL"
OPEN_VALUES = ("rougeL_f1", "rougeL_recall", "rouge1_recall", "prob", "score", "acc")
"""Names of an item's value in OpenUnlearning's files, those that a configuration may aggregate."""
TEXTS = ("prompt", "gt", "input", "ground_truth")
"""What MUSE and OpenUnlearning call the prompt and the truth of an item."""
DIGEST = 10
"""Digits of a digest of an item's text, which stands in its id, so that items of other texts do not match."""
FLOAT32 = 2.0**-24
"""Relative error of one rounding in float32, in which a harness may have added up its items."""


@dataclass
class ModelItems:
    """The items of one model.

    Attributes:
        source: file or directory, as given.
        values: values by the harness's name of the metric, then by id.
        texts: prompt and truth of an item, likewise, where they are in the file and not in the id.
        notes: notes on what was left out.
    """

    source: Path
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, file: Path, metric: str, identity: str, value: object) -> None:
        """Take one item; one without a finite value is left out, with a note.

        Raises:
            ValueError: the metric has an item of this id already, or the value is no number.
        """
        items = self.values.setdefault(metric, {})
        if identity in items:
            raise ValueError(f"{file}: {metric}: ids must differ, got {identity!r} twice")
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            self.notes.append(f"{file}: {metric}: item {identity} has no value and was left out.")
            return
        if not isinstance(value, int | float):
            raise ValueError(f"{file}: {metric}: a value must be a number, got {value!r} for item {identity}")
        items[identity] = float(value)


def read_items(path: Path) -> ModelItems:
    """Read the items of one model.

    Raises:
        ValueError: nothing there is of a known layout, or a file breaks its own; one line that begins with the path.
    """
    if not path.exists():
        raise ValueError(f"{path}: must be a file or directory of per-item results that exists")
    found = ModelItems(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for read, file in _readers(files):
        read(file, found)
    if not found.values:
        layouts = "*_EVAL.json, METRIC/log.json, samples_TASK_TIME.jsonl or a .jsonl of id, metric and value"
        raise ValueError(f"{path}: must hold per-item results, {layouts}, got none")
    return found


Reader = Callable[[Path, ModelItems], None]


def _readers(files: list[Path]) -> Iterator[tuple[Reader, Path]]:
    """Yield the files of known layouts, each with its reader; of lm-eval's files the newest of each task."""
    newest: dict[str, tuple[str, Path]] = {}
    for file in files:
        sample = SAMPLES.fullmatch(file.name)
        if sample is not None:
            newest[sample["task"]] = max(newest.get(sample["task"], ("", file)), (sample["time"], file))
        elif file.name.endswith("_EVAL.json"):
            yield _open_unlearning, file
        elif file.name == "log.json" and file.parent.name in MUSE_METRICS:
            yield _muse, file
        elif file.suffix == ".jsonl":
            yield _plain, file
    for _, file in newest.values():
        yield _lm_eval, file


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError:
        raise ValueError(f"{file}: must be JSON, got text that is not") from None


def _lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{file}: line {number} must be a JSON object, got {line.strip()[:40]!r}")
            yield number, row


def _plain(file: Path, found: ModelItems) -> None:
    for number, row in _lines(file):
        missing = [name for name in ("id", "metric", "value") if name not in row]
        if missing:
            raise ValueError(f"{file}: line {number} must have id, metric and value, got no {missing[0]}")
        metric, identity = str(row["metric"]), str(row["id"])
        found.add(file, metric, identity, row["value"])
        texts = [row[name] for name in TEXTS if isinstance(row.get(name), str)]
        if texts:
            found.texts.setdefault(metric, {})[identity] = "\n".join(texts)


def _lm_eval(file: Path, found: ModelItems) -> None:
    sample = SAMPLES.fullmatch(file.name)
    assert sample is not None, "the name was matched before"
    for number, row in _lines(file):
        if "doc_id" not in row or not isinstance(row.get("metrics"), list):
            raise ValueError(f"{file}: line {number} must be a sample of lm-eval with doc_id and metrics, got none")
        texts = str(row.get("doc_hash", ""))[:DIGEST]
        filtered = row.get("filter", "none")
        suffix = "" if filtered == "none" else f",{filtered}"
        for name in row["metrics"]:
            identity = f"{row['doc_id']}#{texts}" if texts else str(row["doc_id"])
            found.add(file, f"{sample['task']}:{name}{suffix}", identity, row.get(name))


def _muse(file: Path, found: ModelItems) -> None:
    rows = _json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and MUSE_VALUE in row for row in rows):
        raise ValueError(f"{file}: must be a list of objects with {MUSE_VALUE}, as MUSE logs them")
    for place, row in enumerate(rows):
        text = f"{row.get('prompt', '')}\n{row.get('gt', '')}"
        found.add(file, file.parent.name, f"{place}#{digest(text)}", row[MUSE_VALUE])


def _open_unlearning(file: Path, found: ModelItems) -> None:
    logs = _json(file)
    if not isinstance(logs, dict):
        raise ValueError(f"{file}: must be an object of metrics, as OpenUnlearning writes it")
    for metric, entry in logs.items():
        items = entry.get("value_by_index") if isinstance(entry, dict) else None
        if not isinstance(items, dict) or not items:
            continue
        name = _aggregated(file, metric, entry.get("agg_value"), items)
        for identity, item in items.items():
            text = "" if item is None else f"{item.get('input', '')}\n{item.get('ground_truth', '')}".strip()
            full = f"{identity}#{digest(text)}" if text else str(identity)
            found.add(file, metric, full, None if item is None else item.get(name))


def _aggregated(file: Path, metric: str, total: object, items: Mapping[str, Any]) -> str:
    """Return which value of the items the file's own `agg_value` is the mean of: a configuration chooses it.

    Raises:
        ValueError: none is, so that the items are not what was aggregated.
    """
    there = [name for name in OPEN_VALUES if any(isinstance(item, dict) and name in item for item in items.values())]
    for name in there:
        values = [item[name] for item in items.values() if isinstance(item, dict) and _is_number(item.get(name))]
        if values and _is_number(total):
            mean, size = (math.fsum(x) / len(values) for x in (values, map(abs, values)))
            if abs(mean - float(str(total))) <= 2 * len(values) * FLOAT32 * size:
                return name
    if there and not _is_number(total):
        return there[0]
    if metric.endswith("ruth_ratio") or not there:
        return there[0] if there else "score"  # aggregated by a rule of its own, and not judged
    raise ValueError(f"{file}: {metric}: agg_value must be the mean of {', '.join(there)} of its items, got {total!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def digest(text: str) -> str:
    """Return the digits that stand for a text in an id."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
