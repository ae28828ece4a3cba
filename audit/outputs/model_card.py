"""`model-card.md`: a block for the model's card, with `model-index` metadata as the Hub reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import yaml

from unforgotten.audit.outputs.answer import FormatAnswer, answer
from unforgotten.audit.outputs.result import AuditResult
from unforgotten.audit.outputs.result_rows import FormatRow

TASK = "text-generation"
DATASET = "unforgotten-weights-audit"


def render_model_card(result: AuditResult) -> str:
    """Render YAML front matter with the gains as metrics, then the verdict, a table and the hashes in Markdown."""
    front = yaml.safe_dump(model_index(result), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_body(result)}"


def model_index(result: AuditResult) -> dict[str, Any]:
    """Return `model-index`: one result with a metric a format, the share of equal codes where there is no gain."""
    name = PurePath(result["unlearned"]["source"]).name or "unlearned"
    task = {"type": TASK, "name": "Does quantization undo the unlearning?"}
    dataset = {
        "type": DATASET,
        "name": "The weights of this model against those before unlearning",
        "revision": result["target"]["sha256"],
    }
    metrics = [_metric(row) for row in result["formats"] if row["grid"] == "adaptive"]
    results = [{"task": task, "dataset": dataset, "metrics": metrics}]
    return {"model-index": [{"name": name, "results": results}]}


def _metric(row: FormatRow) -> dict[str, Any]:
    if row["gain"] is None:
        value, kind = 1 - row["code_flips"] / row["weights"], "equal_codes"
        return {"type": kind, "value": value, "name": f"Share of equal codes in {row['format']}"}
    name = f"Share of the unlearning update that survives {row['format']}"
    return {"type": "gain", "value": row["gain"], "name": name}


def _body(result: AuditResult) -> str:
    found = answer(result)
    words = ", ".join(f"{leg}: {word}" for leg, word in found.legs)
    measured = [_measured_line(row) for row in found.rows] if found.metrics else []
    lines = [
        "## Does quantization undo the unlearning?",
        "",
        f"**Verdict: {found.overall}** ({words}).",
        "",
        *(f"- {escaped(reason)}" for reason in result["verdict"]["reasons"]),
        *(f"- {escaped(note)}" for note in found.notes),
        "",
        *(line for text in (found.models, found.items) if text for line in (escaped(text), "")),
        *_measured_table(found.metrics, measured),
        "| format | gain | equal codes | cosine |",
        "| --- | ---: | ---: | ---: |",
        *(_line(row) for row in result["formats"] if row["grid"] == "adaptive"),
        "",
        "The gain is the share of the unlearning update that is left after quantization: 1 is all of it.",
        "",
        escaped(result["control"]["sentence"]),
        "",
        f"Measured by unforgotten {result['version']} on weights with these SHA-256:",
        "",
        f"- before unlearning: `{result['target']['sha256']}`",
        f"- this model: `{result['unlearned']['sha256']}`",
    ]
    return "\n".join(lines) + "\n"


def _measured_table(metrics: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Return the table of what models know: before unlearning, after it, and quantized after it."""
    if not lines:
        return []
    heads = ("format", *(f"{name}: target → unlearned → quantized" for name in metrics), "recovered", "says")
    return [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *lines, ""]


def _measured_line(row: FormatAnswer) -> str:
    cells = (row.format, *(str(trail) for trail in row.trails), escaped(row.recovered), row.word)
    return f"| {' | '.join(cells)} |"


def _line(row: FormatRow) -> str:
    ratios = ("–" if x is None else f"{x:.2f}" for x in (row["gain"], row["cosine"]))
    gain, cosine = ratios
    equal = 1 - row["code_flips"] / row["weights"]
    return f"| {row['format']} | {gain} | {100 * equal:.1f} % | {cosine} |"


def escaped(text: str) -> str:
    """Escape Markdown in a text: names of tensors come from strangers, and nothing in them is markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in text)
