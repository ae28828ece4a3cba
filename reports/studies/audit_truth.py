"""How often the audit's verdict was right: `table.md` from the rows that `experiments/studies/audit_truth.py` writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unforgotten.records.files import read_json_lines
from unforgotten.records.packed_rows import ROWS_FILE
from unforgotten.records.shares import clopper_pearson

Row = dict[str, Any]
WORDS = ("survives", "undone", "undecided")
SETS = {
    "constructed": "truth by construction; all three legs, from checkpoints on disk",
    "whole": "behaviour leg on all items; truth from the openings of the passages, which no metric of the leg scores",
    "output": "output leg alone; the same truth",
    "held out": "as whole, of runs that nobody had looked at when the rule was final",
    "one format": "the same pairs, each format an audit of its own",
    "one format by texts": "likewise, by the output leg alone",
    "halves": "behaviour leg on half of the passages; truth from M1 and M2 on the other half, twice a pair",
}
FRESH = ("held out", "one format", "one format by texts")
ASKED = {"undone": "sensitivity", "survives": "specificity"}
TAIL = 0.025  # of an interval of 95 %, on either side
INTERVALS = (
    "Intervals are Clopper and Pearson's, which take pairs to be independent. Pairs of one model share its answers, and models of "
    "one seed their target, so they are somewhat too short."
)
HEADS = ("set", "truth", "pairs", *(f"verdict {word}" for word in WORDS), "right of decided", "confident errors")


def render(folder: Path) -> Mapping[str, str]:
    """Return the files made of the study's rows: `table.md`."""
    return {"table.md": truth_table(read_json_lines(folder / ROWS_FILE))}


def truth_table(rows: Sequence[Row]) -> str:
    """Return Markdown that counts verdicts by set and truth, then lists every confident error."""
    lines = [
        (
            "A truth is the largest rho (T16) over formats: `undone` from 1/3 on, else `survives`; `border` where its own "
            "interval holds 1/3, so that the truth is itself uncertain. An error is a verdict `survives` of a truth "
            "`undone`, or the reverse; `undecided` is neither right nor an error."
        ),
        "",
        *(f"- **{name}**: {meaning}." for name, meaning in SETS.items()),
        "",
        *_counts("All pairs", rows),
        "",
        *_counts("Pairs that were not looked at before the rule was final", [r for r in rows if not r["looked_at"]]),
        "",
        *_held_out([r for r in rows if r["set"] in FRESH and r["truth"]]),
        *_errors(rows),
    ]
    return "\n".join(lines) + "\n"


def _counts(title: str, rows: Sequence[Row]) -> list[str]:
    lines = [f"## {title}", "", *_head(HEADS)]
    for name in SETS:
        for truth in ("survives", "undone"):
            for border in (False, True):
                group = [r for r in rows if r["set"] == name and r["truth"] == truth and r["clear"] is not border]
                if group:
                    lines.append(_line(name, f"{truth}{', border' if border else ''}", group))
    decided = [r for r in rows if r["truth"] and r["verdict"] != "undecided"]
    return [*lines, _line("all", "known", [r for r in rows if r["truth"]])] if decided else lines


def _line(name: str, truth: str, group: Sequence[Row]) -> str:
    said = Counter(r["verdict"] for r in group)
    decided, right = len(group) - said["undecided"], _right(group)
    return _row((name, truth, len(group), *(said[w] for w in WORDS), f"{right} of {decided}", decided - right))


def _held_out(rows: Sequence[Row]) -> list[str]:
    """Return the shares of held-out pairs that got the right word, and the pairs by architecture, method and storage."""
    if not rows:
        return []
    heads = ("set", "what", "truths", "pairs", "models", "right", "share", "95 %", "undecided", "wrong")
    lines = ["## Sensitivity and specificity on held-out pairs", "", INTERVALS, "", *_head(heads)]
    for name in FRESH:
        for truth, what in ASKED.items():
            for kind, clear in (("all", (True, False)), ("clear", (True,))):
                group = [r for r in rows if r["set"] == name and r["truth"] == truth and r["clear"] in clear]
                lines.append(_row((name, what, kind, *_share(group))))
    lines += ["", "One format, by what the pairs were made with:", ""]
    lines += _head(("architecture", "method", "storage", "truth", "pairs", "right", "undecided", "wrong"))
    single = [r for r in rows if r["set"] == "one format"]
    for key in sorted({(r["architecture"], r["method"], r["storage"], r["truth"]) for r in single}):
        group = [r for r in single if (r["architecture"], r["method"], r["storage"], r["truth"]) == key]
        right, undecided = _right(group), _undecided(group)
        lines.append(_row((*key, len(group), right, undecided, len(group) - right - undecided)))
    return [*lines, ""]


def _share(group: Sequence[Row]) -> tuple[object, ...]:
    models = len({(r["run"], r["method"], r["storage"], r.get("depth")) for r in group})
    right, undecided = _right(group), _undecided(group)
    share, interval = "–", "–"
    if group:
        low, high = clopper_pearson(right, len(group), TAIL)
        share, interval = f"{right / len(group):.0%}", f"{low:.0%} to {high:.0%}"
    return len(group), models, right, share, interval, undecided, len(group) - right - undecided


def _right(group: Sequence[Row]) -> int:
    return sum(r["verdict"] == r["truth"] for r in group)


def _undecided(group: Sequence[Row]) -> int:
    return sum(r["verdict"] == "undecided" for r in group)


def _of_format(row: Row) -> str:
    return f" in {row['format']}" if "format" in row else ""


def _head(cells: Sequence[object]) -> list[str]:
    return [_row(cells), "|" + " --- |" * len(cells)]


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _errors(rows: Sequence[Row]) -> list[str]:
    wrong = [r for r in rows if r["truth"] and r["verdict"] not in ("undecided", r["truth"])]
    unknown = sum(r["truth"] is None for r in rows)
    lines = ["## Confident errors", ""]
    lines += [
        f"- {r['set']}: {r['run']}, {r['method']} {r['storage']}{_of_format(r)}: `{r['verdict']}`, truth `{r['truth']}` "
        f"(rho {r['rho']:.2f} [{r['interval'][0]:.2f}, {r['interval'][1]:.2f}], {r['where']}; "
        f"{'clear' if r['clear'] else 'border'})"
        for r in wrong
    ] or ["None."]
    return [*lines, "", f"Left out: {unknown} rows without a truth, as too little was removed to tell."]
