"""Files of texts: by their suffix, line by line; and items that are there twice."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")

from unforgotten.experiments.data.layout import read_lines
from unforgotten.experiments.data.texts import read_texts
from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.legs.output import output_leg
from unforgotten.experiments.models.saved import load_tokenizer
from unforgotten.records.files import write_json

LINES = '{"text": "one"}\n{"text": "two"}\n'
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""What str.splitlines cuts at beside the ends of lines."""


@contextlib.contextmanager
def refused(words: str) -> Iterator[None]:
    """What is in the block ends in a ValueError of exactly these words."""
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        yield


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ndjson", LINES),
        ("a.NDJSON", LINES),
        ("a.JSONL", LINES),
        ("a.JSON", '[\n"one",\n"two"\n]'),
        ("a.TXT", "one\ntwo"),
    ],
)
def test_suffixes_are_read_whatever_their_case(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_texts(tmp_path / name) == ["one", "two"]


@pytest.mark.parametrize(("name", "got"), [("a.csv", ".csv"), ("a.txt.bak", ".bak"), ("a", "a name without suffix")])
def test_another_suffix_is_refused(name: str, got: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("one\ntwo\n")
    with refused(f"{tmp_path / name}: must be a file of texts, .txt, .json, .jsonl, .ndjson, got {got}"):
        read_texts(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LINES, "JSON objects; rename it to .jsonl"),
        (LINES.replace("\n", "\n\n"), "JSON objects; rename it to .jsonl"),
        ("\ufeff" + LINES, "JSON objects; rename it to .jsonl"),
        ('["one", "two"]', "a JSON list; rename it to .json"),
        (json.dumps([{"text": "one"}, "two"], indent=1), "a JSON list; rename it to .json"),
    ],
)
def test_json_in_a_text_file_is_refused_with_what_to_do(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content, encoding="utf-8")
    with refused(f"{path}: must hold one text a line, got {said}"):
        read_texts(path)


@pytest.mark.parametrize(
    "lines", [['"one"', '"two"'], ["[1]", "[2]"], ["[1, 2]"], ["1"], ["[]"], ["{}", "and a text"], ["[" * 100_000]]
)
def test_texts_that_only_look_like_json_are_texts(lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(lines))
    assert read_texts(tmp_path / "a.txt") == lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_with_line_ends_alone(end: str, tmp_path: Path) -> None:
    texts = [f"one{SEPARATORS}still one", "two"]
    (tmp_path / "a.txt").write_bytes(end.join([*texts, ""]).encode())
    assert read_texts(tmp_path / "a.txt") == texts
    lines = [json.dumps(text, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes(end.join(lines).encode())
    assert read_texts(tmp_path / "a.jsonl") == texts
    assert read_lines(tmp_path / "a.jsonl", "must exist") == texts


def test_a_mark_of_byte_order_is_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    assert read_texts(tmp_path / "a.txt") == ["one", "two"]


def test_equal_texts_are_one_and_the_audit_says_so(micro_pair: Path, tmp_path: Path) -> None:
    pair = (micro_pair / "models/target", micro_pair / "models/unlearned")
    texts = ["some words", "other words", "words of a town"]
    write_json(tmp_path / "once.json", texts)
    write_json(tmp_path / "more.json", [texts[0], *texts, {"text": texts[2]}])
    once, more = (output_leg(*pair, ["int4-g64"], tmp_path / f"{name}.json") for name in ("once", "more"))
    note = "2 of 5 texts are equal to another one and were left out: equal ones count once."
    assert more == {**once, "texts": str(tmp_path / "more.json"), "notes": [note, *once["notes"]]}
    assert more["count"] == 3


def test_one_text_many_times_is_too_few(micro_pair: Path, tmp_path: Path) -> None:
    pair = (micro_pair / "models/target", micro_pair / "models/unlearned")
    path = tmp_path / "one.txt"
    path.write_text("some words\n" * 12)
    with refused(f"{path}: must hold at least 2 different texts, got one, 12 times"):
        output_leg(*pair, ["int4-g64"], path)


def test_equal_items_of_a_benchmark_are_one(muse: Path, micro_pair: Path) -> None:
    tokenizer = load_tokenizer(micro_pair / "models/target")
    once = read_benchmark(muse, tokenizer, 2048)
    for name in ("privleak/forget", "privleak/holdout", "knowmem/forget_qa", "knowmem/retain_qa", "verbmem/forget"):
        items = json.loads((muse / f"{name}.json").read_text())
        write_json(muse / f"{name}.json", [items[0], *items])
    twice = read_benchmark(muse, tokenizer, 2048)
    assert twice.probes == once.probes
    ends = "are equal to another one and were left out: equal ones count once."
    counts = ["7 passages", "7 holdout texts", "7 forget prompts", "7 retain prompts", "6 verbatim prompts"]
    assert [note for note in twice.notes if note not in once.notes] == [f"1 of {count} {ends}" for count in counts]


def test_a_question_with_another_answer_is_another_item(muse: Path, micro_pair: Path) -> None:
    pairs = [{"question": "Who opened it?", "answer": answer} for answer in ("the mayor", "the town", "the mayor")]
    write_json(muse / "knowmem/forget_qa.json", pairs)
    bench = read_benchmark(muse, load_tokenizer(micro_pair / "models/target"), 2048)
    assert bench.probes.forget_answers == ["the mayor", "the town"]


def test_a_benchmark_of_one_item_many_times_is_refused(muse: Path, micro_pair: Path) -> None:
    write_json(muse / "privleak/forget.json", ["The mayor spoke of honey."] * 12)
    with refused(f"{muse}: must hold at least 2 different passages"):
        read_benchmark(muse, load_tokenizer(micro_pair / "models/target"), 2048)
