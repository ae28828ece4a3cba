"""The tables of the report: rows selected and formatted, nothing else.

In goes a run; out comes a `Table` of text, which the page's template shows as it is:

    gain_table(read_run(Path("reports/published/tiny-seed0"))).columns
    ("Method", "Storage arm", "Precision", "Gain", "Cosine", …)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unforgotten.records.metrics import ALWAYS, ASSUMED, STAND_IN
from unforgotten.records.rows import Row, Run, select
from unforgotten.reports.labels import estimate, family, number, plain, precision_label, storage_label, storage_short
from unforgotten.reports.run.conjectures import conjectures
from unforgotten.reports.run.gates import Forgetting, forgetting, gate_checks, passed
from unforgotten.reports.run.sentences import COARSE, recovery, value_range

SubjectKey = tuple[str, str | None, str | None, str]
SUBJECT_COLUMNS = ("Model", "Method", "Storage arm", "Precision")
ARM_COLUMNS: Mapping[str, str] = {
    "parameters": "Parameters",
    "master": "Master copy",
    "checkpoint": "Checkpoint",
    "moments": "Moments",
    "rounding": "Rounding",
    "products": "Matrix products",
    "updated_share": "Share of weights updated",
    "mask_threshold": "Percentile of the mask",
}
"""Heads of the columns that say how an arm computes, by what the rows call it."""
RECOVERED: Mapping[str, str] = {"rho_M1": "ρ(M1)", "rho_M2": "ρ(M2)", "rho_forget_loss": "ρ(forget loss)"}
WORDS: Mapping[bool | None, str] = {True: "yes", False: "no", None: "not measured"}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        caption: sentence above it.
        columns: heads of the columns.
        rows: cells of each row.
        heads: number of first columns that hold words; the very first names its row.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    heads: int = 1


def metrics_table(run: Run) -> Table:
    """Return M1-M4 and the losses of every model."""
    columns = {
        "M1": "M1",
        "M2": "M2",
        "M3": "M3",
        "M4": "M4",
        "forget_loss": "Forget loss",
        "retain_loss": "Retain loss",
    }
    return _by_subject(run, columns, "Value and 95 % interval of every model at every precision.", pairs=False)


def further_table(run: Run) -> Table | None:
    """Return what was measured beside that of every run, of every model; None where nothing was."""
    known = {*ALWAYS, *STAND_IN}
    measured = dict.fromkeys(row.metric for row in run.rows if row.model == "target" and row.metric not in known)
    if not measured:
        return None
    caption = "Further metrics that this run asked for. Value and 95 % interval of every model at every precision."
    return _by_subject(run, {name: name for name in measured}, caption, pairs=False)


def stand_in_table(run: Run) -> Table | None:
    """Return how near the target is to what it stands in for; None where the rows do not say."""
    rows = select(run.rows, metric=tuple(STAND_IN))
    if not rows:
        return None
    shown = {m: head for m, head in STAND_IN.items() if any(row.metric == m for row in rows)}
    subjects = dict.fromkeys((row.model, row.format) for row in rows)
    found = {(row.model, row.format, row.metric): plain(row.value) for row in rows}
    assumed = f" {ASSUMED}: weights N(0, 0.02²), not measured." if any(row.model == ASSUMED for row in rows) else ""
    return Table(
        "How near the target is to what it stands in for. Edge: magnitude from which bf16 moves no weight by steps of the "
        "bf16 learning rate. First threshold: magnitude from which the median block rounds to another code than 0. Blocks "
        f"that swallow: share of blocks in which no weight below the edge can change its code.{assumed}",
        ("Model", "Precision", *shown.values()),
        [
            (model, "all" if name == "none" else name, *(found.get((model, name, m), "–") for m in shown))
            for model, name in subjects
        ],
        heads=2,
    )


def recovery_table(run: Run) -> Table:
    """Return the recovered fractions of M1, M2 and, where rows have it, the forget loss."""
    return _by_subject(run, RECOVERED, f"Recovered fraction and 95 % interval ({recovery_interval(run)}).")


def recovery_interval(run: Run) -> str:
    """Name the interval of the recovered fractions: a bootstrap's where rows have a standard error, else Fieller's."""
    known = [row for row in select(run.rows, metric=tuple(RECOVERED)) if row.value is not None]
    resampled = {row.stderr is not None for row in known} or {False}
    return " or ".join(
        "paired bootstrap over items" if r else "t-test over items, Fieller's" for r in sorted(resampled)
    )


def gain_table(run: Run) -> Table:
    """Return gain and cosine, the share of weights that the update left, and how evenly the moved ones lie."""
    columns = {
        "gain": "Gain",
        "cosine": "Cosine",
        "unchanged_fraction": "Weights unchanged by the update",
        "position_distance": "Position distance",
    }
    return _by_subject(
        run,
        columns,
        "Grid fitted to each model, as deployment does. Position distance: how far the places of moved weights in their "
        "rounding cells are from an even spread (0 even, 1 all at one place).",
    )


def decomposition_table(run: Run) -> Table:
    """Return lost effect, gating and base shift of the forget loss."""
    columns = {"lost_effect": "Lost effect", "gating_effect": "Gating", "base_shift_effect": "Base shift"}
    return _by_subject(run, columns, "Forget loss in nats per token; lost effect = gating + base shift.")


def hybrid_table(run: Run) -> Table:
    """Return forget loss and M1 of both mixed models of the decomposition."""
    columns = {
        f"{metric}@{hybrid}": f"{name}, {words}"
        for metric, name in (("forget_loss", "Forget loss"), ("M1", "M1"))
        for hybrid, words in (
            ("target+D", "target + surviving update"),
            ("Q(target)+delta", "quantized target + whole update"),
        )
    }
    return _by_subject(run, columns, "The two mixed models of the decomposition.")


def flips_table(run: Run) -> Table:
    """Return the counts of flips, observed and expected."""
    columns = {"code_flips": "Code flips", "expected_flips": "Expected by chance", "value_changes": "Value changes"}
    return _by_subject(run, columns, "Counts of weights; the expected number with its 95 % interval.")


def forgetting_table(run: Run) -> Table:
    """Return for each unlearned model whether it forgets and keeps, with the values that say so."""
    entries = forgetting(run)
    return Table(
        "Forgets the words: M1 at most halfway between the retrained model and the target. Keeps the rest: M4 at least "
        "60 % of the target's. Forgets the facts: M2 at most halfway; it is shown and does not count here.",
        ("Method", "Storage arm", *_forgetting_columns(entries)),
        [_forgetting_row(entry) for entry in entries],
        heads=2,
    )


def _forgetting_row(entry: Forgetting) -> list[str]:
    return [
        entry.method,
        storage_label(entry.storage),
        estimate(entry.m1),
        WORDS[entry.forgets],
        estimate(entry.m4),
        WORDS[entry.keeps],
        estimate(entry.m2),
        WORDS[entry.forgets_facts],
    ]


def _forgetting_columns(entries: Sequence[Forgetting]) -> list[str]:
    """Return the column heads of the forgetting table, with the limits, which hold for all models of a run."""
    m1, m2, m4 = (entries[0].m1_limit, entries[0].m2_limit, entries[0].m4_floor) if entries else (None,) * 3
    return [
        f"M1, at most {number('M1', m1)}",
        "forgets words",
        f"M4, at least {number('M4', m4)}",
        "keeps the rest",
        f"M2, at most {number('M2', m2)}",
        "forgets facts",
    ]


def gate_table(run: Run) -> Table:
    """Return the conditions without which a run can show nothing, and whether they hold."""
    return Table(
        "Conditions without which nothing could come back, or nothing could be seen coming back.",
        ("Condition", "Found", "Holds"),
        [(check.rule, check.found, WORDS[check.passed]) for check in gate_checks(run)],
    )


def settings_table(run: Run) -> Table:
    """Return how every unlearned model was trained."""
    firsts = [next(r for r in run.rows if (r.method, r.storage) == arm) for arm in run.arms]
    kept = {name: words for name, words in ARM_COLUMNS.items() if any(_kept(r, name) for r in firsts)}
    return Table(
        "Unlearning settings. Stopped by: forget_loss is the fixed rule on the forget loss, max_steps the limit."
        + ("" if run.depth is None else " steps: a number of steps that was asked for."),
        ("Method", "Storage arm", "Learning rate", "Alpha", "Steps", "Stopped by", *kept.values()),
        [(*_settings_row(run, r), *(_kept(r, name) or "–" for name in kept)) for r in firsts],
        heads=2,
    )


def _settings_row(run: Run, row: Row) -> list[str]:
    method = row.method or "–"
    steps = "–" if row.steps is None else f"{row.steps:,}"
    lr = plain(row.lr) or "–"
    alpha = _alpha(run, method) if row.alpha is None else plain(row.alpha)
    return [method, storage_label(row.storage), lr, alpha or "–", steps, row.stopped or "–"]


def _kept(row: Row, name: str) -> str | None:
    """Return what a row says for a key of ARM_COLUMNS; rows of older runs do not say all of it."""
    mask = {name: plain(getattr(row, name)) or None for name in ("updated_share", "mask_threshold")}
    words = {"rounding": row.rounding, "products": row.products, **mask}
    return words[name] if name in words else row.dtypes.get(name)


def _alpha(run: Run, method: str) -> str:
    """Return the weight of the retain loss, from the configuration: the method's own, else the common one."""
    unlearning: Any = (run.settings or {}).get("unlearning")
    if not isinstance(unlearning, dict):
        return "–"
    methods: Any = unlearning.get("methods") or {}
    if method not in methods:
        return "–"  # of somebody's own: only its rows know
    alpha = (methods[method] or {}).get("alpha")
    return plain(unlearning.get("alpha") if alpha is None else alpha) or "–"


def origin_table(run: Run) -> Table:
    """Return where the rows come from."""
    first = run.rows[0]
    processors = dict.fromkeys(row.processor for row in run.rows if row.processor)
    measured_in = dict.fromkeys(row.evaluation_dtype for row in run.rows if row.evaluation_dtype)
    return Table(
        "Origin of the rows.",
        ("What", "Value"),
        [
            ("Profile", first.profile or "–"),
            ("Seed", str(first.seed)),
            ("Corpus", first.corpus or "–"),
            ("Configuration hash", first.config),
            ("Revision", first.revision),
            ("Device", first.device),
            *([("Processor", "; ".join(processors))] if processors else []),
            *([("Dtype of the evaluation", "; ".join(measured_in))] if measured_in else []),
            ("Rows", f"{len(run.rows):,}"),
            ("SHA-256 of rows.jsonl", run.sha256),
        ],
        heads=2,
    )


def all_rows_table(run: Run) -> Table:
    """Return every row."""
    return Table(
        "Every row of rows.jsonl, to six digits.",
        (*SUBJECT_COLUMNS, "Metric", "Value", "95 % interval", "n"),
        [
            (
                *_words(row.place),
                row.metric,
                plain(row.value) or "undefined",
                _plain_bounds(row),
                "" if row.n is None else f"{row.n:,}",
            )
            for row in run.rows
        ],
        heads=5,
    )


def depth_table(runs: Sequence[Run]) -> Table | None:
    """Return what each arm forgot and kept at each depth, unquantized; None where no run kept weights on the way."""
    metrics = {"forget_loss": "Forget loss", "M1": "M1", "M2": "M2", "M3": "M3", "M4": "M4"}

    def line(run: Run, method: str, storage: str) -> list[str]:
        found = [run.get(name, "unlearned", method, storage) for name in metrics]
        steps = next((f"{row.steps:,}" for row in found if row is not None and row.steps is not None), "–")
        return [run.label, method, storage_label(storage), steps, *(estimate(row) for row in found)]

    lines = [line(run, *arm) for run in runs if run.depth is not None for arm in run.arms]
    caption = (
        "What each arm forgot and kept at each depth, before quantization. Value and 95 % interval; the forget loss is "
        "the one that was reached. A depth that an arm did not reach has no line."
    )
    columns = ("Run and depth", "Method", "Storage arm", "Steps", *metrics.values())
    return Table(caption, columns, lines, heads=3) if lines else None


def summary_table(runs: Sequence[Run]) -> Table:
    """Return a line for each run and arm: its conditions, what came back, and the verdicts."""
    return Table(
        "All runs of this report. Comes back: cases with the 95 % interval of ρ(M1) above 0, of the cases where it is "
        "defined. Gain: smallest to largest.",
        (
            "Run",
            "Storage arm",
            "Shows something",
            "Target M1",
            "Target M2",
            "Comes back",
            "Largest ρ(M1)",
            "Gain",
            "Gain at int4 and fp4",
            "C1",
            "C2",
        ),
        [line for run in runs for line in _summary_rows(run)],
        heads=2,
    )


def _summary_rows(run: Run) -> Iterator[list[str]]:
    verdicts = [c.verdict.removesuffix(" here") for c in conjectures(run)]
    for storage in run.storages:
        r = recovery(run, storage)
        gains = select(run.rows, metric="gain", storage=storage)
        coarse = [row for row in gains if family(row.format) in COARSE]
        yield [
            run.label,
            storage_short(storage),
            WORDS[passed(gate_checks(run))],
            number("M1", run.value("M1", "target")),
            number("M2", run.value("M2", "target")),
            f"{len(r.back)} of {len(r.defined)}",
            estimate(r.largest),
            value_range(gains),
            value_range(coarse),
            *verdicts,
        ]


def _by_subject(run: Run, columns: Mapping[str, str], caption: str, *, pairs: bool = True) -> Table:
    """Return a line for each model and precision that has any of these metrics."""
    rows = select(run.rows, metric=tuple(columns))
    shown = {m: name for m, name in columns.items() if any(row.metric == m for row in rows)}
    subjects: dict[SubjectKey, None] = {row.place: None for row in rows}
    first = 1 if pairs else 0  # a pair is always of an unlearned model: its column would say nothing
    return Table(
        caption,
        (*SUBJECT_COLUMNS[first:], *shown.values()),
        [(*_words(s)[first:], *(estimate(run.get(m, *s)) for m in shown)) for s in subjects],
        heads=len(SUBJECT_COLUMNS) - first,
    )


def _words(subject: SubjectKey) -> tuple[str, str, str, str]:
    model, method, storage, format_name = subject
    return model, method or "–", storage_label(storage), precision_label(format_name)


def _plain_bounds(row: Row) -> str:
    if row.bounds is None or row.value is None:
        return ""
    return f"[{plain(row.bounds[0])}, {plain(row.bounds[1])}]"
