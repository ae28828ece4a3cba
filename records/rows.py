"""The rows of a run: what one holds, stated once, and how a folder of them is read and indexed.

In goes a folder that `RowStore` of `records/store.py` wrote, or another program by the same contract; out comes a `Run`
that answers by name:

    run = read_run(Path("reports/published/tiny-seed0"))
    run.value("M1", "unlearned", "GA", "bf16", "int4-g64")

A line of `rows.jsonl` is a JSON object with the fields of `Row`, in their order. What a field may hold is what its
annotation says. All are written; a reader does without those of MAY_BE_ABSENT, which the first published rows did not
have, and ignores fields that `Row` has not, so that a later version may add some. Nothing here measures anything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from unforgotten.records.depths import stem, words
from unforgotten.records.packed_rows import rows_content, rows_path

Z95 = 1.96
Key = tuple[str, str, str | None, str | None, str, str | None]


@dataclass(frozen=True)
class Subject:
    """What a row is about: which model, trained how, quantized how.

    Attributes:
        model: kind of model: "base", "target", "retrained", "unlearned", or another program's own word.
        method: unlearning method; None where nothing was unlearned, as for `storage` and the settings.
        storage: storage arm, which says how the parameters are kept from one step to the next.
        format: format of the quantized weights; "none" for the model itself.
        lr: learning rate.
        alpha: weight of the retain loss.
        beta: inverse temperature of NPO.
        steps: number of steps taken.
        stopped: name of the rule that ended training.
        dtypes: dtypes by what is kept in them.
        products: way in which bfloat16 matrices were multiplied.
        rounding: way in which a step was rounded to the dtype of the parameters.
        calibration: text that the format was calibrated on; None where it looks at weights alone.
        depth: depth of forgetting at which the weights were kept, see `depths.py`; None where the run has no such goals.
        updated_share: share of the weights that the method's mask let move; None of a method without one.
        mask_threshold: percentile of the parts' norms below which that mask holds a part.
    """

    model: str
    method: str | None = None
    storage: str | None = None
    format: str = "none"
    lr: float | None = None
    alpha: float | None = None
    beta: float | None = None
    steps: int | None = None
    stopped: str | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    products: str | None = None
    rounding: str | None = None
    calibration: str | None = None
    depth: str | None = None
    updated_share: float | None = None
    mask_threshold: float | None = None

    @property
    def file_stem(self) -> str:
        """Name of this subject in names of files."""
        depth = None if self.depth is None else stem(self.depth)
        parts = [self.model, self.method, self.storage, depth, self.format]
        return "-".join(part.replace(":", "_") for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Row(Subject):
    """One measurement: `metric` of one subject, and where it comes from. Fields stand in the order in which they are written.

    Attributes:
        metric: name of the metric, see `records/metrics.py`.
        value: number that was measured; None where it is undefined.
        stderr: standard error of the value.
        n: number of items behind it.
        interval: 95 % interval of its own, where the standard error does not tell it.
        items: path of the file with the values of the single items, below the folder of the run.
        stage: stage of the run that wrote the row.
        profile: name of the configuration's profile.
        seed: seed of the run.
        config: hash of the configuration.
        revision: version and hash of the sources.
        corpus: origin of the texts.
        rouge: tokenizer of ROUGE, "ascii" or "unicode".
        device: device that computed.
        processor: name of the processor and its instructions.
        evaluation_dtype: dtype of the model that was measured.
    """

    metric: str
    value: float | None
    stderr: float | None = None
    n: int | None = None
    interval: tuple[float, float] | None = None
    items: str | None = None
    stage: str | None = None
    profile: str | None = None
    seed: int
    config: str
    revision: str
    corpus: str | None = None
    rouge: str | None = None
    device: str
    processor: str | None = None
    evaluation_dtype: str | None = None

    @property
    def key(self) -> Key:
        """What makes a row unique in a run."""
        return (self.metric, self.model, self.method, self.storage, self.format, self.depth)

    @property
    def place(self) -> tuple[str, str | None, str | None, str]:
        """What `Run.get` finds it by, beside the metric."""
        return (self.model, self.method, self.storage, self.format)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """95 % interval: the row's own, else value ± 1.96 stderr, else None."""
        if self.interval is not None:
            return self.interval
        if self.value is None or self.stderr is None:
            return None
        return (self.value - Z95 * self.stderr, self.value + Z95 * self.stderr)


MAY_BE_ABSENT = frozenset(
    {
        "alpha",
        "beta",
        "steps",
        "stopped",
        "products",
        "rounding",
        "calibration",
        "interval",
        "items",
        "stage",
        "profile",
        "rouge",
        "corpus",
    }
    | {"processor", "depth", "evaluation_dtype", "updated_share", "mask_threshold"}
)
"""Fields of `Row` that a line may lack."""
JSON_TYPES: Mapping[Any, tuple[type, ...]] = {float: (int, float), tuple: (list,), Mapping: (dict,)}
"""What stands in JSON for a type of Python, where it is not the type itself."""


class FieldRule(NamedTuple):
    """What a field of a line must be: a JSON value of one of these types, or null where that is allowed."""

    types: tuple[type, ...]
    nullable: bool


@cache
def field_rules() -> Mapping[str, FieldRule]:
    """Return the rule of each field of `Row`, as its annotation says it, in the order of the fields."""
    hints = get_type_hints(Row)
    return {field.name: _rule(hints[field.name]) for field in fields(Row)}


def _rule(hint: Any) -> FieldRule:
    parts = [part for part in get_args(hint) if part is not NoneType]
    nullable = NoneType in get_args(hint)
    bare: Any = parts[0] if nullable else hint
    origin: Any = get_origin(bare) or bare
    return FieldRule(JSON_TYPES.get(origin, (origin,)), nullable)


@dataclass(frozen=True)
class Run:
    """All rows of one run, and the configuration echoed beside them where it is there.

    A run that kept weights at several depths is looked at one depth at a time, see `by_depth`.
    """

    rows: tuple[Row, ...]
    sha256: str
    settings: Mapping[str, Any] | None = None
    depth: str | None = None

    @cached_property
    def _index(self) -> dict[Key, Row]:
        return {row.key: row for row in self.rows}

    def get(
        self, metric: str, model: str, method: str | None = None, storage: str | None = None, format: str = "none"
    ) -> Row | None:
        """Return the row of a metric for a model in a format, or None where the run has none at its depth."""
        depth = self.depth if method is not None else None
        return self._index.get((metric, model, method, storage, format, depth))

    @cached_property
    def depths(self) -> tuple[str, ...]:
        """Depths of the unlearned models, in the order of the rows; none where the run had no such goals."""
        return _unique(row.depth for row in self.rows)

    def by_depth(self) -> tuple[Run, ...]:
        """Return the run once for each depth, with the rows of that depth and of the models that it starts from."""
        if self.depth is not None or not self.depths:
            return (self,)
        return tuple(
            replace(self, depth=d, rows=tuple(row for row in self.rows if row.depth in (None, d))) for d in self.depths
        )

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
        depth = "" if self.depth is None else f", {words(self.depth)}"
        return f"{first.profile or 'run'}, seed {first.seed}{depth}"


def select(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Return the rows whose fields equal all of `wanted`; a tuple means any of its members."""
    return [row for row in rows if all(_matches(getattr(row, k), v) for k, v in wanted.items())]


def read_rows(folder: Path) -> list[Row]:
    """Read and check the rows of a run's folder, packed or not.

    Raises:
        ValueError: the folder or file is missing, or a line breaks a rule; one line that names file, line and rule.
    """
    return _rows_of(rows_path(folder), rows_content(folder))


def read_run(folder: Path) -> Run:
    """Read a run: its rows with their SHA-256, and `config.json` where it is there.

    Raises:
        ValueError: as `read_rows`; or `config.json` is not a JSON object.
    """
    content = rows_content(folder)
    rows = _undefine_baseless_recovery(_rows_of(rows_path(folder), content))
    return Run(tuple(rows), hashlib.sha256(content).hexdigest(), _read_settings(folder / "config.json"))


def _rows_of(path: Path, content: bytes) -> list[Row]:
    rows = list(_parse(path, content))
    _check_one_run(path, rows)
    return rows


def _undefine_baseless_recovery(rows: Sequence[Row]) -> list[Row]:
    """Make each rho undefined where the quantized target knows no more than the unlearned model: a loss is not below.

    Both the rise and its limit are then falls, and their quotient says nothing of memory coming back.
    """
    values = {row.key: row.value for row in rows}

    def without_reference(row: Row) -> bool:
        metric = row.metric.removeprefix("rho_")
        target = values.get((metric, "target", None, None, row.format, None))
        unlearned = values.get((metric, row.model, row.method, row.storage, "none", row.depth))
        if target is None or unlearned is None:
            return False
        return target >= unlearned if metric.endswith("loss") else target <= unlearned

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


def _parse(path: Path, content: bytes) -> Iterable[Row]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                yield _row(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from None


def _row(line: bytes) -> Row:
    given = _object(line)
    for name in field_rules():
        if name not in given and name not in MAY_BE_ABSENT:
            raise ValueError(f"a row must have the field {name!r}, got {', '.join(given) or 'no fields'}")
    values = {name: _checked(name, given[name], *rule) for name, rule in field_rules().items() if name in given}
    values["interval"] = _interval(values.get("interval"))
    return Row(**values)


def _object(line: bytes) -> dict[str, Any]:
    try:
        given = json.loads(line.decode("utf-8"))
    except ValueError:
        shown = line.decode("utf-8", "replace")[-40:]
        raise ValueError(f"a row must be one JSON object, got a broken line ending in {shown!r}") from None
    if not isinstance(given, dict):
        raise ValueError(f"a row must be one JSON object, got {type(given).__name__}")
    return given


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
