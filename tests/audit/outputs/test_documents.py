"""What others read of an audit: its schema, SARIF, JUnit, the block for a model card, and examples that use it."""

from __future__ import annotations

import json
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from safetensors.numpy import save_file
from typer.main import get_command

from unforgotten.audit import AuditResult, audit_pair
from unforgotten.audit.findings.row import Severity
from unforgotten.audit.outputs.json_schema import audit_schema, shipped_schema
from unforgotten.audit.outputs.junit import render_junit
from unforgotten.audit.outputs.model_card import model_index, render_model_card
from unforgotten.audit.outputs.result import SCHEMA
from unforgotten.audit.outputs.sarif import RULES, render_sarif
from unforgotten.audit.verdict.gate import read_words
from unforgotten.audit.verdict.legs import BehaviourFormat, BehaviourLeg, Mean, OutputFormat, OutputLeg
from unforgotten.cli import app

ROOT = Path(__file__).parents[3]
Tensors = dict[str, NDArray[Any]]
HOSTILE = "layers.0.`<b>|\x1b[31m\x00\n]]>{{x}}.weight"
LEVELS: set[Severity] = {"error", "warning", "note"}
SHA256 = re.compile("[0-9a-f]{64}")


def save(folder: Path, content: Tensors) -> Path:
    folder.mkdir(parents=True)
    save_file(content, folder / "model.safetensors")
    return folder


def start() -> Tensors:
    w = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    w[:, 0] = 7
    return {HOSTILE: w, "layers.1.up.weight": w[::-1].copy(), "norm.weight": np.ones(8, np.float32)}


def small(w: NDArray[Any]) -> NDArray[Any]:
    """Moves only what lies well inside the zero bin of int4-row."""
    return np.where(np.abs(w) < 0.25, w + np.float32(0.06), w) if w.ndim == 2 else w + 1


def noisy(w: NDArray[Any]) -> NDArray[Any]:
    rng = np.random.default_rng(1)
    return (w + rng.normal(0, 0.1, w.shape)).astype(np.float32)


ENDS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"same": lambda w: w, "swallowed": small, "passing": noisy}


def mean(value: float) -> Mean:
    return Mean(value=value, stderr=0.01, n=4)


OUTPUT = OutputLeg(
    texts="forget.txt",
    count=4,
    tokens=100,
    cut=0,
    losses={"target": mean(0.1)},
    distances=[],
    formats=[OutputFormat(format="int8-row", losses={}, distances=[], recoveries=[], effects=[])],
    notes=["One note."],
)
BEHAVIOUR = BehaviourLeg(
    benchmark="bench",
    metrics={"target": {"M1": mean(99.0)}},
    formats=[BehaviourFormat(format="int8-row", metrics={}, recoveries=[], effects=[])],
    leaks=[],
    notes=[],
)


@pytest.fixture(scope="module", params=[*ENDS, "legs"])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    root = tmp_path_factory.mktemp("pair")
    end = ENDS["passing" if request.param == "legs" else request.param]
    t, u = (save(root / "t", start()), save(root / "u", {n: end(w) for n, w in start().items()}))
    legs = {"output": lambda: OUTPUT, "behaviour": lambda: BEHAVIOUR} if request.param == "legs" else {}
    return audit_pair(t, u, ["int4-row", "int8-row"], root / "out", **legs)  # type: ignore[arg-type]


def test_shipped_schema_is_that_of_the_types() -> None:
    assert shipped_schema() == audit_schema()
    jsonschema.Draft202012Validator.check_schema(audit_schema())


def test_every_result_is_valid(result: AuditResult) -> None:
    jsonschema.Draft202012Validator(shipped_schema()).validate(result)


@pytest.mark.parametrize("fault", ["more", "less", "type", "version", "digest"])
def test_what_the_schema_does_not_know_is_invalid(fault: str, result: AuditResult) -> None:
    bad: Any = json.loads(json.dumps(result))
    if fault == "more":
        bad["formats"][0]["rows"] = 1
    elif fault == "less":
        del bad["storage"]["precision"]
    elif fault == "type":
        bad["formats"][0]["weights"] = 0.5
    elif fault == "version":
        bad["schema"] = "unforgotten.audit/2"
    else:
        bad["target"]["sha256"] = "0"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(shipped_schema()).validate(bad)


def test_schema_names_its_version() -> None:
    assert audit_schema()["title"] == SCHEMA
    assert audit_schema()["$id"].endswith(SCHEMA.rsplit("/", 1)[1])


def test_sarif_has_what_the_standard_asks_for(result: AuditResult) -> None:
    """SARIF 2.1.0: §3.13 the document, §3.14 a run, §3.18-19 the tool, §3.27 a result."""
    document = json.loads(render_sarif(result))
    assert document["version"] == "2.1.0"
    assert document["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = document["runs"]
    driver = run["tool"]["driver"]
    rules = [rule["id"] for rule in driver["rules"]]
    assert driver["name"] == "unforgotten"
    assert len(rules) == len(set(rules)) == len(RULES)
    assert len(run["results"]) == 1 + len(result["findings"])
    for row in run["results"]:
        assert rules[row["ruleIndex"]] == row["ruleId"]
        assert row["level"] in LEVELS
        assert row["message"]["text"]
        (place,) = row["locations"]
        assert re.fullmatch(r"[\w/.%~:-]+", place["physicalLocation"]["artifactLocation"]["uri"])
        assert row["properties"]["sha256"] == {
            side: dict(result)[side]["sha256"]  # type: ignore[index]
            for side in ("target", "unlearned")
        }
    keys = [row["partialFingerprints"]["finding/v1"] for row in run["results"]]
    assert len(keys) == len(set(keys))


def test_every_finding_has_a_rule_and_the_parts_of_one(result: AuditResult) -> None:
    for row in result["findings"]:
        assert row["id"] in RULES
        assert row["severity"] in LEVELS
        assert row["sentence"].isprintable()
        assert row["sentence"].endswith(".")
        if row["interval"] is not None:
            low, high = row["interval"]
            assert row["effect"] is not None
            assert low <= row["effect"] <= high
        assert row["p"] is None or 0 <= row["p"] <= 1


def test_junit_counts_its_cases(result: AuditResult) -> None:
    suite = ET.fromstring(render_junit(result))
    assert suite.tag == "testsuite"
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "")) == len(cases) == 1 + len(result["findings"])
    failed = [row for row in result["findings"] if row["severity"] == "error"]
    assert int(suite.get("failures", "")) == len(failed) == len(suite.findall("testcase/failure"))
    assert int(suite.get("skipped", "")) == 1  # undecided
    names = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert names["unlearned.sha256"] == result["unlearned"]["sha256"]


@pytest.mark.parametrize("overall", ["survives", "undone"])
def test_junit_follows_the_verdict(overall: str, result: AuditResult) -> None:
    changed: Any = {**result, "verdict": {**result["verdict"], "overall": overall}}
    case = ET.fromstring(render_junit(changed)).findall("testcase")[0]
    assert (case.find("failure") is not None) == (overall == "undone")
    assert case.find("skipped") is None
    level = json.loads(render_sarif(changed))["runs"][0]["results"][0]["level"]
    assert level == {"survives": "note", "undone": "error"}[overall]


def front_matter(text: str) -> Any:
    head, _, rest = text.removeprefix("---\n").partition("\n---\n")
    assert text.startswith("---\n")
    assert rest
    return yaml.safe_load(head)


def test_model_card_is_read_by_the_hub(result: AuditResult) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="what reads model cards")
    card = hub.ModelCard(render_model_card(result))
    measured = [f for f in result["formats"] if f["grid"] == "adaptive"]
    assert card.data.eval_results is not None
    assert [round(e.metric_value, 12) for e in card.data.eval_results] == [
        round(f["gain"] if f["gain"] is not None else 1 - f["code_flips"] / f["weights"], 12) for f in measured
    ]
    assert {e.task_type for e in card.data.eval_results} == {"text-generation"}
    assert {e.dataset_revision for e in card.data.eval_results} == {result["target"]["sha256"]}


def test_model_index_has_the_documented_structure(result: AuditResult) -> None:
    """https://github.com/huggingface/hub-docs/blob/main/modelcard.md: name, results of task, dataset and metrics."""
    text = render_model_card(result)
    assert front_matter(text) == model_index(result)
    (model,) = front_matter(text)["model-index"]
    assert model["name"] == "u"
    for entry in model["results"]:
        assert {"task", "dataset", "metrics"} == set(entry)
        assert entry["task"]["type"] == "text-generation"
        assert set(entry["dataset"]) >= {"type", "name"}
        assert entry["metrics"]
        for metric in entry["metrics"]:
            assert set(metric) == {"type", "value", "name"}
            assert isinstance(metric["value"], float)


def test_model_card_binds_to_the_weights_and_escapes_names(result: AuditResult) -> None:
    text = render_model_card(result)
    assert {result["target"]["sha256"], result["unlearned"]["sha256"]} <= set(SHA256.findall(text))
    assert f"Verdict: {result['verdict']['overall']}" in text
    body = text.split("\n---\n", 1)[1]
    assert "\x1b" not in text
    assert not re.search(r"(?<!\\)<b>", body)


def command_lines(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    found = re.findall(r"^\s*(?:run:\s*)?(unforgotten audit [^\n|]+)", joined, re.MULTILINE)
    return [shlex.split(re.sub(r"\$\{\{[^}]*\}\}|\"?\$\{?\w+\}?\"?", "x", line)) for line in found]


@pytest.mark.parametrize("name", ["github-action.yml", "pre-release.sh"])
def test_command_lines_of_the_examples_are_accepted(name: str) -> None:
    lines = command_lines((ROOT / "examples" / name).read_text())
    assert lines
    command = get_command(app)
    for _, audit, *arguments in lines:
        sub = command.commands[audit]  # type: ignore[attr-defined]
        parsed = sub.make_context("audit", arguments)
        assert parsed.params["target"]
        measured = [name for name in ("texts", "benchmark") if parsed.params[name] is not None]
        assert read_words(parsed.params["fail_on"], measured)


def test_the_github_action_is_a_workflow() -> None:
    workflow = yaml.safe_load((ROOT / "examples" / "github-action.yml").read_text())
    assert workflow[True]  # YAML 1.1 reads the key `on` so
    (job,) = workflow["jobs"].values()
    assert job["runs-on"]
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
    uploaded = [s["with"] for s in job["steps"] if "upload-sarif" in s.get("uses", "")]
    assert uploaded[0]["sarif_file"].endswith("audit.sarif")
