"""Metrics and models of one's own: run, reported and kept track of; refused in one line where they are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="a run needs unforgotten[experiments]")

from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics import own as own_metrics
from unforgotten.experiments.models.bases import own as own_bases
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.run import run
from unforgotten.records.rows import read_run
from unforgotten.reports.run.build import build_report

ROOT = Path(__file__).parents[2]
MICRO = str(ROOT / "tests/micro.yaml")
EXAMPLES = {name: ROOT / f"examples/{name}.py" for name in ("own_metric", "own_model")}
SMALL = ("formats=[nf4-b64]", "storages=[bf16]")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """What was loaded is kept by reference, and a test writes other files under the same one."""
    yield
    own_metrics.load_own.cache_clear()
    own_bases.load_own.cache_clear()


def test_examples_are_run_and_reported_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in EXAMPLES.items():
        shutil.copy(path, tmp_path / f"{name}.py")
    monkeypatch.chdir(tmp_path)
    config = load_config(
        MICRO,
        overrides=SMALL,
        methods=["GA"],
        metrics=["own_metric.py:answer_length", "forget_probability"],
        model="own_model.py:narrow_gpt2",
    )
    run(config, tmp_path / "out", resume=False)
    assert load_model(tmp_path / "out/models/target").config.model_type == "gpt2"
    rows = read_run(tmp_path / "out")
    measured = [("target", None, None), ("retrained", None, None), ("unlearned", "GA", "bf16")]
    for model, method, storage in measured:
        for format_name in ("none", "nf4-b64"):
            row = rows.get("answer_length", model, method, storage, format_name)
            assert row is not None
            assert row.value is not None
            assert row.value >= 0
            assert row.n == config.corpus.passages
            assert rows.get("forget_probability", model, method, storage, format_name) is not None
    report = build_report([tmp_path / "out"], tmp_path / "report.html")
    head, further = Path(report).read_text().split("<caption>Further metrics", 1)
    assert '<th scope="col">answer_length</th>' in further.split("</thead>", 1)[0]
    assert "answer_length" not in head
    assert sorted(json.loads((tmp_path / "out/own.json").read_text())) == sorted(config.own)
    (tmp_path / "own_metric.py").write_text("raise SystemExit('run by an audit')\n")
    tokenizer = load_tokenizer(tmp_path / "out/models/target")
    assert read_benchmark(tmp_path / "out/corpus", tokenizer, 512).settings.evaluation.metrics == (
        "forget_probability",
    )
    (tmp_path / "own_metric.py").write_text(EXAMPLES["own_metric"].read_text() + "# changed\n")
    with pytest.raises(ValueError, match=r"--resume needs the code of the run, got another file of own_metric\.py"):
        run(config, tmp_path / "out", resume=True)


def test_a_model_of_one_s_own_comes_trained_without_pretraining(tmp_path: Path) -> None:
    """Then the base is saved as the function made it, and the notes say that its dtypes in training are not known."""
    config = load_config(MICRO, overrides=[*SMALL, "pretraining=null"], model=f"{EXAMPLES['own_model']}:narrow_gpt2")
    from unforgotten.experiments.data.prepare import prepare_corpus
    from unforgotten.experiments.prepared_models import _base

    corpus, _ = prepare_corpus(config.corpus, 0, tmp_path / "corpus")
    model, tokenizer = _base(config, corpus, None)
    made, _ = own_bases.load_own(config.base.kind).make(config.base, corpus.general, config.seed)
    theirs = dict(made.named_parameters())
    assert all((parameter == theirs[name]).all() for name, parameter in model.named_parameters())
    assert config.base.vocabulary is not None
    assert 300 < len(tokenizer) <= config.base.vocabulary


METRIC = "def f(model, probes, settings):\n    return "
WRONG_METRICS: dict[str, tuple[str, str]] = {
    "a text": (METRIC + "3", "must return a finite number for each item, got int"),
    "words": (METRIC + "['a', 'b']", "must return a finite number for each item, got list"),
    "none": (METRIC + "[]", "must return a finite number for each item, got no items"),
    "nan": (METRIC + "[1.0, float('nan')]", "must return a finite number for each item, got nan for item 1"),
}


@pytest.mark.parametrize("case", WRONG_METRICS)
def test_what_a_metric_returns_is_checked(case: str, tmp_path: Path) -> None:
    text, said = WRONG_METRICS[case]
    (tmp_path / "mine.py").write_text(text + "\n")
    metric = own_metrics.load_own(f"{tmp_path}/mine.py:f")
    nothing: Any = None
    with pytest.raises(ValueError, match=r"mine\.py:f: ") as caught:
        metric.measure(nothing, nothing, nothing)
    assert said in str(caught.value)


REFUSED: dict[str, tuple[str, Callable[[str], dict[str, Any]], str]] = {
    "metric, arguments": (
        "def f(model): ...",
        lambda f: {"metrics": [f]},
        "mine.py:f: must take (model, probes, settings), got (model)",
    ),
    "metric, number": ("f = 3", lambda f: {"metrics": [f]}, "mine.py:f: must be a function or a Metric, got int"),
    "metric, ours": (
        "def M1(model, probes, settings): ...\nf = M1",
        lambda f: {"metrics": [f.replace(":f", ":M1")]},
        "a metric must have a name that no other has, got metric=",
    ),
    "metric, twice": (
        "def forget_probability(model, probes, settings): ...",
        lambda f: {"metrics": ["forget_probability", f.replace(":f", ":forget_probability")]},
        "a metric must have a name that no other has, got metric=",
    ),
    "metric, another name": (
        "from unforgotten.experiments.metrics.metric import by_items\nf = by_items('g', 'a number', len)",
        lambda f: {"metrics": [f]},
        "mine.py:f: must be called as its Metric is, 'g', got 'f'",
    ),
    "metric, no name": ("", lambda f: {"metrics": ["nothing"]}, "path.py:name, or module:name, got metric='nothing'"),
    "model, arguments": (
        "def f(config): ...",
        lambda f: {"model": f},
        "mine.py:f: must take (config, texts, seed), got (config)",
    ),
    "model, missing": ("", lambda f: {"model": f}, "mine.py: must hold the model, got no name 'f'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_none_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    text, asked, said = REFUSED[case]
    (tmp_path / "mine.py").write_text(text + "\n")
    with pytest.raises(ValueError, match=r"micro\.yaml: (evaluation|base)") as caught:
        load_config(MICRO, **asked(f"{tmp_path}/mine.py:f"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("return None", "must return a causal model of transformers and its tokenizer, got NoneType"),
        ("return 1, 2", "must return a causal model of transformers and its tokenizer, got int, int"),
    ],
)
def test_what_a_model_returns_is_checked(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"def f(config, texts, seed):\n    {text}\n")
    nothing: Any = None
    with pytest.raises(ValueError, match=r"mine\.py:f: ") as caught:
        own_bases.load_own(f"{tmp_path}/mine.py:f").make(nothing, [], 0)
    assert said in str(caught.value)


def test_a_small_head_is_refused(tmp_path: Path) -> None:
    text = EXAMPLES["own_model"].read_text().replace("vocab_size=config.vocabulary or 2048", "vocab_size=300")
    (tmp_path / "mine.py").write_text(text)
    config = load_config(MICRO)
    base = own_bases.load_own(f"{tmp_path}/mine.py:narrow_gpt2")
    with pytest.raises(
        ValueError, match=r"must have a row of its head for each of the tokenizer's \d+ tokens, got 300"
    ):
        base.make(config.base, ["some text that a tokenizer may learn " * 40 + str(i) for i in range(99)], 0)
