"""Gen, Tru and Fac against what lm-evaluation-harness measures by itself, on tasks whose data lies on disk."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="metrics need unforgotten[experiments]")

from unforgotten.experiments.data.corpus import read_fiction
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.metrics.probes import check_asked, make_probes
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.shell import Shell, state_of

MEAN = 100 * 6 * 2.0**-52
"""A mean of six items of at most 100, added in another order."""
MICRO = Path(__file__).parents[2] / "micro.yaml"
CHOICES = """
task: mmlu
dataset_path: json
dataset_kwargs: {data_files: {test: "%(data)s", dev: "%(data)s"}}
test_split: test
fewshot_split: dev
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""
ANSWERS = """
task: triviaqa
dataset_path: json
dataset_kwargs: {data_files: {test: "%(data)s"}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], do_sample: false, max_gen_toks: 8}
metric_list:
  - metric: exact_match
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval", reason="Gen, Tru and Fac need unforgotten[harness]")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = [
        {"question": f"Who saw number {i}?", "choices": ["Mara", "the old ferry"], "answer": i % 2} for i in range(8)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in (("mmlu", CHOICES), ("triviaqa", ANSWERS)):
        (folder / f"{name}.yaml").write_text(text % {"data": data})
    return folder


def test_they_are_what_the_harness_measures(tasks: Path, micro_pair: Path) -> None:
    """The harness's own mean of the same items; a second time the same, though its examples are drawn."""
    library, models, loading = map(import_module, ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks"))
    chosen = {"evaluation.metrics": ["Gen", "Fac"], "evaluation.harness": {"path": str(tasks), "limit": 6}}
    config = load_config(str(MICRO), overrides=[f"{k}={json.dumps(v)}" for k, v in chosen.items()])
    corpus = read_fiction(micro_pair / "corpus")
    check_asked(corpus, config)
    model, tokenizer = load_model(micro_pair / "models/target"), load_tokenizer(micro_pair / "models/target")
    pad = tokenizer.pad_token
    meter = Meter(Shell(model, tokenizer), make_probes(corpus, tokenizer, config), config)
    state = state_of(model)
    first, second = (meter.measure(state, ["Gen", "Fac"]) for _ in range(2))
    assert first == second
    assert tokenizer.pad_token == pad

    lm = models.HFLM(
        pretrained=load_model(micro_pair / "models/target"), tokenizer=load_tokenizer(micro_pair / "models/target")
    )
    theirs = library.simple_evaluate(
        model=lm,
        tasks=["mmlu", "triviaqa"],
        limit=6,
        task_manager=loading.TaskManager(include_path=tasks),
        bootstrap_iters=0,
    )
    assert first["Gen"].n == first["Fac"].n == 6
    assert first["Gen"].value == pytest.approx(100 * theirs["results"]["mmlu"]["acc,none"], abs=MEAN)
    assert first["Fac"].value == 100 * theirs["results"]["triviaqa"]["exact_match,none"]
    assert 0 < first["Gen"].value < 100  # answers alternate, so that one choice alone earns half


def test_data_that_is_not_there_is_refused_before_a_run(tasks: Path, micro_pair: Path) -> None:
    (tasks.parent / "rows.jsonl").unlink()
    config = load_config(
        str(MICRO), overrides=["evaluation.metrics=[Gen]", f'evaluation.harness={{"path": "{tasks}"}}']
    )
    with pytest.raises(ValueError, match="the harness must be able to load task mmlu and its data, got") as error:
        check_asked(read_fiction(micro_pair / "corpus"), config)
    assert "\n" not in str(error.value)


def test_a_missing_harness_is_named_with_its_extra(micro_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = load_config(str(MICRO), overrides=["evaluation.metrics=[Tru]"])
    with pytest.raises(ValueError, match=r"lm_eval is missing: pip install 'unforgotten\[harness\]'"):
        check_asked(read_fiction(micro_pair / "corpus"), config)


def test_a_configuration_without_it_does_not_name_it() -> None:
    plain = load_config(str(MICRO))
    assert "harness" not in plain.model_dump()["evaluation"]
    limited = load_config(str(MICRO), overrides=["evaluation.harness.limit=5"])
    assert limited.model_dump()["evaluation"]["harness"] == {"path": None, "limit": 5}
    assert limited.hash != plain.hash
