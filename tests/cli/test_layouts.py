"""The layouts of texts and benchmarks that README describes are those that are read; the example for TOFU makes one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="benchmarks are read by unforgotten[experiments]")

from unforgotten.experiments.data.muse import read_muse
from unforgotten.experiments.data.settings import CorpusConfig
from unforgotten.experiments.data.texts import read_texts

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def test_the_example_for_tofu_makes_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "tofu").mkdir()
    for name in ("forget10", "retain90", "holdout10"):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"Author {i}."} for i in range(30)]
        (tmp_path / f"tofu/{name}.json").write_text("\n".join(json.dumps(row) for row in rows))
    section = README.split("TOFU is a file of JSON lines")[1]
    code = section.split("```python\n")[1].split("```")[0]
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)
    corpus = read_muse(
        tmp_path / "bench",
        CorpusConfig(kind="muse", path=tmp_path / "bench", passages=100, holdout=100, trained_on="sample"),
    )
    assert len(corpus.forget_questions) == len(corpus.passages) == len(corpus.holdout) == 30
    assert len(corpus.retain_questions) == len(corpus.retain) == 20
    assert corpus.forget_shots == corpus.retain_shots
    assert corpus.passages[0] == "Question: Who is forget10 0?\nAnswer: Author 0."


@pytest.mark.parametrize("name", ["knowmem/forget_qa", "knowmem/retain_qa_icl", "privleak/forget", "privleak/holdout"])
def test_what_readme_names_is_what_a_reader_misses(name: str, muse: Path) -> None:
    assert f"`{name}.json`" in README
    (muse / f"{name}.json").unlink()
    with pytest.raises(ValueError, match="must exist in a directory of MUSE's layout"):
        read_muse(muse, CorpusConfig(kind="muse", path=muse, passages=10, holdout=10, trained_on="sample"))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".txt", "one\n\ntwo\n"), (".json", '["one", {"text": "two"}]'), (".jsonl", '"one"\n{"text": "two"}\n')],
)
def test_texts_are_read_as_readme_says(suffix: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / f"texts{suffix}"
    path.write_text(content)
    assert read_texts(path) == ["one", "two"]
