"""Per-item files that lm-eval itself wrote are judged as the values it returned, and its losses are the audit's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the models need unforgotten[experiments]")
pytest.importorskip("lm_eval", reason="its own code writes the files: pip install 'unforgotten[harness]'")

from unforgotten.audit.judged.judge import judge
from unforgotten.experiments.legs.loaded_pair import Pair, open_model_pair
from unforgotten.experiments.models.scoring import mean_loss

FORMAT = "int4-g64"
WORDS = ("the harbour", "a letter", "of the", "in the", "was the", "and a")
TEXTS = [f"{a} {b} {a}" for a in WORDS for b in WORDS[:2]]
FLOAT32 = 2.0**-18
"""Of a mean of some ten losses in float32, added up in another order and padded otherwise."""


def tasks() -> list[dict[str, Any]]:
    """The loss of each text, and whether its continuation holds the text's own words; documents from memory."""

    def docs(**_: Any) -> Any:
        rows = [{"text": text, "start": text[: len(text) // 2]} for text in TEXTS]
        return {"test": import_module("datasets").Dataset.from_list(rows)}

    def loss(doc: Mapping[str, str], results: list[Any]) -> dict[str, float]:
        (found,) = results
        return {"value": -float(found[0] if isinstance(found, tuple | list) else found)}

    def words(doc: Mapping[str, str], results: list[str]) -> dict[str, float]:
        own = doc["text"].split()
        return {"value": 100 * sum(word in results[0].split() for word in own) / len(own)}

    common: dict[str, Any] = {"test_split": "test", "custom_dataset": docs, "doc_to_target": ""}
    metric = [{"metric": "value", "aggregation": "mean", "higher_is_better": True}]
    stop = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    return [
        common
        | {"task": "unforgotten_forget_loss", "output_type": "loglikelihood_rolling", "doc_to_text": ""}
        | {"doc_to_target": "{{text}}", "process_results": loss, "metric_list": metric},
        common
        | {"task": "unforgotten_M2", "output_type": "generate_until", "doc_to_text": "{{start}}"}
        | {"process_results": words, "metric_list": metric, "generation_kwargs": stop},
    ]


def evaluated(pair: Pair, state: Any, folder: Path) -> dict[str, dict[str, float]]:
    """Let lm-eval measure a model and write its samples; return what it returned, by metric and document."""
    library = import_module("lm_eval")
    wrapper = import_module("lm_eval.models.huggingface").HFLM
    tracker = import_module("lm_eval.loggers").EvaluationTracker(output_path=str(folder))
    model = wrapper(
        pretrained=pair.shell.with_state(state), tokenizer=pair.shell.tokenizer, batch_size=1, max_length=96
    )
    found = library.simple_evaluate(model, tasks=tasks(), log_samples=True, bootstrap_iters=0)
    tracker.save_results_aggregated(results=found, samples=found["samples"])
    for task, samples in found["samples"].items():
        tracker.save_results_samples(task_name=task, samples=samples)
    return {
        task.removeprefix("unforgotten_"): {str(one["doc_id"]): one["value"] for one in samples}
        for task, samples in found["samples"].items()
    }


@pytest.fixture(scope="module")
def pair(micro_pair: Path) -> Pair:
    return open_model_pair(micro_pair / "models/target", micro_pair / "models/unlearned")


def test_files_of_lm_eval_are_judged_as_its_values(pair: Pair, tmp_path: Path) -> None:
    quantized = [pair.shell.quantized(state, FORMAT) for state in (pair.target, pair.unlearned)]
    folders, plain = [], []
    for i, state in enumerate((pair.target, pair.unlearned, *quantized)):
        folders.append(tmp_path / f"model{i}")
        values = evaluated(pair, state, folders[-1])
        tokenizer = pair.shell.tokenizer  # before whose start token lm-eval puts another one, and scores the first
        documents = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in TEXTS]
        for k in (0, 7):
            alone = mean_loss(pair.shell.with_state(state), [documents[k]], 1) * (len(documents[k]) - 1)
            assert values["forget_loss"][str(k)] == pytest.approx(alone, rel=FLOAT32)
        plain.append(tmp_path / f"model{i}.jsonl")
        rows = [{"id": k, "metric": m, "value": v} for m, items in values.items() for k, v in items.items()]
        plain[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_files, by_values = (
        judge(target=t, unlearned=u, quantized={FORMAT: (qt, qu)}) for t, u, qt, qu in (folders, plain)
    )
    assert by_files["behaviour"] == {**by_values["behaviour"], "benchmark": by_files["behaviour"]["benchmark"]}
    assert by_files["overall"] == by_values["overall"]
    assert {row["metric"] for row in by_files["behaviour"]["formats"][0]["recoveries"]} == {"M2", "forget_loss"}
