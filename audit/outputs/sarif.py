"""`audit.sarif`: the findings as SARIF 2.1.0, as code scanning of GitHub and others read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from unforgotten.audit.findings.row import FindingId, FindingRow
from unforgotten.audit.outputs.result import AuditResult

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
RULES: Mapping[FindingId | str, str] = {
    "verdict": "The verdict of the audit",
    "not-measured": "Tensors that the audit does not measure",
    "router-only": "Only routers of experts changed",
    "no-update": "No weight that quantizers touch was changed",
    "swallowed": "A format swallows the update, or a part of it",
    "comes-back": "Part of what was forgotten comes back by the rounding cells, to first order (T20)",
    "forgets-further": "The quantized model forgets further by the rounding cells, to first order (T20)",
    "functional-gain": "What a format leaves of the update along the gradient of the forget loss (T20)",
    "zero-bin": "The update lies in the coarse cells beside zero (T11b)",
    "on-grid": "The weights lie on a format's grid before the update (T11a)",
    "dead-zone": "Storage kept large weights from moving (T4)",
    "wash": "The update avoids a format's thresholds, or aims at them (T12)",
    "concentration": "The update is on few tensors or rows (T9)",
    "layers": "The layers that carry the surviving update",
    "other-layout": "Tensors that differ by order, orientation or convention, not by an update",
    "storage": "The two sides are stored differently",
    "kept-changed": "Tensors that quantizers leave alone changed too",
    "advice": "What to do",
    "codes-differ": "Codes of a quantized pair differ",
    "codes-equal": "A quantized pair is one and the same model",
    "retain-lost": "A model lost what it should keep: it is broken",
    "theory-disagrees": "What theory expects of the given recipe is not what was measured",
    "ran-in-dtype": "The dtype that models ran in swallows the update, or a part of it",
}
VERDICT_LEVELS = {"survives": "note", "undecided": "warning", "undone": "error"}


def render_sarif(result: AuditResult) -> str:
    """Return the SARIF log: a result for the verdict and one a finding, bound to the SHA-256 of both checkpoints."""
    verdict = result["verdict"]
    rows = [
        _result(
            result,
            "verdict",
            VERDICT_LEVELS[verdict["overall"]],
            f"Verdict: {verdict['overall']}. {' '.join(verdict['reasons'][:1])}",
            {},
        ),
        *(_of_finding(result, row) for row in result["findings"]),
    ]
    driver = {
        "name": "unforgotten",
        "version": result["version"],
        "rules": [{"id": id, "shortDescription": {"text": text}} for id, text in RULES.items()],
    }
    taxonomies = [_standard(result)]
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "taxonomies": taxonomies,
        "results": rows,
        "properties": {"control": result["control"]},
    }
    document = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _standard(result: AuditResult) -> dict[str, Any]:
    """Return the standard whose control this audit is evidence for, as a taxonomy (SARIF 2.1.0, §3.19.3)."""
    control = result["control"]
    taxon = {"id": control["control"], "shortDescription": {"text": control["sentence"]}}
    return {"name": control["standard"], "organization": "OWASP", "taxa": [taxon]}


def _of_finding(result: AuditResult, row: FindingRow) -> dict[str, Any]:
    more = {key: row[key] for key in ("format", "tensor", "measure", "effect", "interval", "p")}
    return _result(result, row["id"], row["severity"], row["sentence"], more)


def _result(result: AuditResult, rule: str, level: str, text: str, more: Mapping[str, Any]) -> dict[str, Any]:
    place = quote(PurePath(result["unlearned"]["source"]).as_posix())
    control = result["control"]
    taxa = [{"id": control["control"], "index": 0, "toolComponent": {"name": control["standard"], "index": 0}}]
    sums = {side: result[side]["sha256"] for side in ("target", "unlearned")}
    key = "/".join([rule, str(more.get("format") or ""), str(more.get("tensor") or "")])
    return {
        "ruleId": rule,
        "ruleIndex": list(RULES).index(rule),
        "level": level,
        "message": {"text": text},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": place}}}],
        "taxa": taxa if rule == "verdict" else [],
        "partialFingerprints": {"finding/v1": key},
        "properties": {**more, "sha256": sums},
    }
