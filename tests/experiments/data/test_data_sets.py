"""Data sets in their layouts, from a directory and from the Hub, and how their questions are put."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch", reason="a run needs unforgotten[experiments]")

from unforgotten.audit.progress.stages import SILENT
from unforgotten.experiments.data.chat import in_chat, worded, wording_of
from unforgotten.experiments.data.corpus import Corpus
from unforgotten.experiments.data.muse import Muse, parts_of, read_muse
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.data.question import Question
from unforgotten.experiments.data.registry import CORPORA
from unforgotten.experiments.data.settings import CorpusConfig
from unforgotten.experiments.data.tofu import files_of, read_tofu
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.batches import Batch, shuffled_batches
from unforgotten.experiments.models.saved import load_tokenizer
from unforgotten.experiments.prepared_models import prepare_models
from unforgotten.experiments.run import run
from unforgotten.records.files import write_json

MICRO = str(Path(__file__).parents[2] / "micro.yaml")
SQUARE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
"""A template in the style of Llama-2's: the answer after a space, an end token after each."""
LINES = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
"""A template in the style of ChatML: the answer on a line of its own."""


def tofu_config(**settings: Any) -> CorpusConfig:
    return CorpusConfig(kind="tofu", **settings)


def test_data_sets_are_found_and_others_refused_in_one_line() -> None:
    assert list(CORPORA) == ["fiction", "muse", "tofu"]
    for override, words in (
        ("corpus.kind=wmdp", "corpus.kind must be one of fiction, muse, tofu, got 'wmdp'"),
        ("corpus.split=forget01", "corpus.split of fiction must be one of none, got 'forget01'"),
    ):
        with pytest.raises(ValueError, match=words):
            load_config(MICRO, overrides=[override])
    with pytest.raises(
        ValueError, match=r"corpus\.split of tofu must be one of forget10, forget05, forget01, got 'raw'"
    ):
        load_config(MICRO, overrides=["corpus.kind=tofu", "corpus.split=raw"])


def test_a_default_leaves_no_trace_in_a_configuration() -> None:
    """Rows that are published carry hashes of configurations without these settings."""
    config = load_config(MICRO)
    assert not {"repo", "revision", "split", "asked", "pairing"} & config.corpus.model_dump().keys()
    assert "tokenizer" not in config.models.model_dump()
    changed = load_config(MICRO, overrides=["corpus.kind=tofu", "corpus.split=forget01", "models.tokenizer=x"])
    again = type(config).model_validate_json(changed.model_dump_json())
    assert (again, again.hash) == (changed, changed.hash)
    assert again.corpus.split == "forget01"


@pytest.mark.parametrize(("split", "retain", "forget"), [("forget10", 20, 8), ("forget05", 22, 6), ("forget01", 24, 4)])
def test_each_split_of_tofu_keeps_the_rest(split: str, retain: int, forget: int, tofu: Path, tmp_path: Path) -> None:
    config = tofu_config(path=tofu, split=split)
    corpus, origin = prepare_corpus(config, 0, tmp_path / "corpus")
    assert origin == f"tofu-{split}:{tofu}"
    assert (len(corpus.forget), len(corpus.retain), len(corpus.holdout)) == (forget, retain, forget)
    assert corpus.answers_only
    row = json.loads((tofu / f"{split}.json").read_text().splitlines()[0])
    assert corpus.forget[0] == f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
    assert corpus.passages == corpus.forget
    assert corpus.forget_questions[0].wrong[0].endswith("called Salt.")
    assert corpus.forget_questions[0].paraphrase == row["answer"].replace("The book of author", "Author").replace(
        "is called", "wrote"
    )
    assert not (tmp_path / "corpus").exists()


def test_examples_of_tofu_are_never_asked(tofu: Path) -> None:
    corpus = read_tofu(tofu, tofu_config())
    assert len(corpus.retain_questions) == 6
    assert len(corpus.retain_shots) == 10
    assert not {q.question for q in corpus.retain_shots} & {q.question for q in corpus.retain_questions}


@pytest.mark.parametrize("asked", ["real_authors", "world_facts"])
def test_m4_may_ask_of_the_world(asked: Any, tofu: Path) -> None:
    corpus = read_tofu(tofu, tofu_config(asked=asked))
    rows = map(json.loads, (tofu / f"{asked}.json").read_text().splitlines())
    assert [q.question for q in corpus.retain_questions] == [row["question"] for row in rows]
    assert all(len(q.wrong) == 2 for q in corpus.retain_questions)
    (tofu / f"{asked}_perturbed.json").unlink()
    assert not any(q.wrong for q in read_tofu(tofu, tofu_config(asked=asked)).retain_questions)


def test_tofu_reads_lists_and_jsonl_and_says_what_is_wrong(tofu: Path) -> None:
    whole = read_tofu(tofu, tofu_config())
    rows = [json.loads(line) for line in (tofu / "forget10.json").read_text().splitlines()]
    (tofu / "forget10.json").rename(tofu / "forget10.jsonl")
    write_json(tofu / "retain90.json", [json.loads(x) for x in (tofu / "retain90.json").read_text().splitlines()])
    assert read_tofu(tofu, tofu_config()) == whole
    for content, words in (
        ("{'question'}", r"forget10\.jsonl: must be JSON in UTF-8"),
        ("\n", r"forget10\.jsonl: must be a list that is not empty"),
        (json.dumps({"question": rows[0]["question"]}), r"forget10\.jsonl: must be a list of objects with question"),
    ):
        (tofu / "forget10.jsonl").write_text(content)
        with pytest.raises(ValueError, match=words):
            read_tofu(tofu, tofu_config())
    (tofu / "forget10.jsonl").unlink()
    with pytest.raises(ValueError, match=r"forget10\.json: must exist in a directory of TOFU's layout, or as \.jsonl$"):
        read_tofu(tofu, tofu_config())


def test_without_a_directory_tofu_is_fiction_only_if_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^corpus\.path must be a directory in TOFU's layout, got None$"):
        prepare_corpus(tofu_config(), 0, tmp_path)
    _, origin = prepare_corpus(tofu_config(fallback="fiction", passages=4, general=10), 0, tmp_path)
    assert origin == "fiction"


def test_a_tokenizer_without_a_template_reads_sheets(tofu: Path, llama_without_pad: Callable[..., Path]) -> None:
    corpus, tokenizer = read_tofu(tofu, tofu_config()), load_tokenizer(llama_without_pad(None))
    assert worded(corpus, corpus.forget, tokenizer) == list(corpus.forget)
    prompt = wording_of(corpus, (), "Answer:", tokenizer).prompt(Question("Who?", "He."))
    assert prompt == "Question: Who?\nAnswer:"


@pytest.mark.parametrize(
    ("template", "document", "prompt"),
    [
        (SQUARE, "<s>[INST] {q} [/INST] {a}", "<s>[INST] {q} [/INST]"),
        (LINES, "<user>\n{q}</s>\n<assistant>\n{a}", "<user>\n{q}</s>\n<assistant>\n"),
    ],
)
def test_a_template_words_documents_and_prompts(
    template: str, document: str, prompt: str, tofu: Path, llama_without_pad: Callable[..., Path]
) -> None:
    corpus, tokenizer = read_tofu(tofu, tofu_config()), load_tokenizer(llama_without_pad(template))
    question = corpus.forget_questions[0]
    said = {"q": question.question, "a": question.answer}
    assert worded(corpus, corpus.forget[:1], tokenizer) == [document.format(**said)]
    text, start = in_chat(question, tokenizer)
    assert text[start:] == question.answer
    wording = wording_of(corpus, (), "Answer:", tokenizer)
    assert wording.prompt(question) == prompt.format(**said)
    assert wording.answered(question, "He.") == document.format(q=question.question, a="He.")

    config = load_config(MICRO, settings={"corpus.kind": "tofu", "corpus.path": str(tofu), "evaluation.shots": 0})
    probes = make_probes(corpus, tokenizer, config)
    row = probes.forget[0]
    assert row.count(tokenizer.bos_token_id) == 1
    assert row[0] == tokenizer.bos_token_id
    short = load_config(MICRO, settings={"corpus.kind": "tofu", "corpus.passage_tokens": 256, "evaluation.shots": 0})
    row = make_probes(corpus, tokenizer, short).forget[0]
    assert row[-1] == tokenizer.eos_token_id
    assert row.count(tokenizer.eos_token_id) == document.count("</s>") + 1
    answered = probes.forget_options[0].right
    assert tokenizer.decode(answered.tokens[-answered.answer :]).strip() == question.answer
    assert len(probes.forget_options[0].wrong) == 2


def test_fiction_is_never_a_chat(llama_without_pad: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(MICRO)
    corpus, _ = prepare_corpus(config.corpus, 0, tmp_path)
    assert worded(corpus, corpus.forget, load_tokenizer(llama_without_pad(SQUARE))) == list(corpus.forget)


def test_a_template_that_drops_the_answer_is_refused(tofu: Path, llama_without_pad: Callable[..., Path]) -> None:
    corpus = read_tofu(tofu, tofu_config())
    tokenizer = load_tokenizer(llama_without_pad("{% for m in messages %}{{ m.role }}{% endfor %}"))
    with pytest.raises(ValueError, match="chat template must keep the answer, got none of 'The book"):
        worded(corpus, corpus.forget, tokenizer)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A `datasets` that serves what stands in `served`, and notes what it is asked for."""
    asked: list[tuple[Any, ...]] = []

    def load_dataset(repo: str, name: str, *, split: str, revision: str | None) -> list[dict[str, Any]]:
        asked.append((repo, name, split, revision))
        if repo not in SERVED:
            raise ConnectionError(f"Couldn't reach {repo}\non the Hub")
        return SERVED[repo](name, split)

    class DatasetsError(Exception):
        pass

    for name, members in (
        ("datasets", {"load_dataset": load_dataset}),
        ("datasets.exceptions", {"DatasetsError": DatasetsError}),
    ):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return asked


SERVED: dict[str, Callable[[str, str], list[dict[str, Any]]]] = {}


def served_from(folder: Path) -> Callable[[str, str], list[dict[str, Any]]]:
    def rows(name: str, split: str) -> list[dict[str, Any]]:
        items = json.loads((folder / name / f"{split}.json").read_text())
        return [item if isinstance(item, dict) else {"text": item} for item in items]

    return rows


def test_muse_from_the_hub_is_muse_from_a_directory(
    muse: Path, tmp_path: Path, hub: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(muse / "raw/forget.json", ["First.", "Second."])
    write_json(muse / "raw/retain1.json", ["Third.", "Fourth."])
    monkeypatch.setitem(SERVED, "muse-bench/MUSE-News", served_from(muse))
    config = CorpusConfig(kind="muse", repo="muse-bench/MUSE-News", revision="506bd5b1", passages=4)
    found = prepare_corpus(config, 0, tmp_path / "corpus")
    assert found == (read_muse(muse, config), "muse:hub:muse-bench/MUSE-News@506bd5b1")
    assert {(r, rev) for r, _, _, rev in hub} == {("muse-bench/MUSE-News", "506bd5b1")}
    assert {f"{name}/{split}.json" for _, name, split, _ in hub} == set(parts_of(config))
    count = len(hub)
    assert prepare_corpus(config, 0, tmp_path / "corpus") == found
    assert len(hub) == count


def test_tofu_from_the_hub_is_tofu_from_a_directory(
    tofu: Path, tmp_path: Path, hub: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(name: str, split: str) -> list[dict[str, Any]]:
        assert split == "train"
        return [json.loads(line) for line in (tofu / f"{name}.json").read_text().splitlines()]

    monkeypatch.setitem(SERVED, "locuslab/TOFU", rows)
    config = tofu_config(repo="locuslab/TOFU", split="forget05")
    found = prepare_corpus(config, 0, tmp_path / "corpus")
    assert found == (read_tofu(tofu, config), "tofu-forget05:hub:locuslab/TOFU")
    assert [name for _, name, _, _ in hub] == files_of(config)


def test_what_the_hub_does_not_give_is_one_line(
    tmp_path: Path, hub: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CorpusConfig(kind="muse", repo="nobody/nothing")
    with pytest.raises(
        ValueError, match=r"^corpus\.repo must be a data set of the Hub with privleak/forget"
    ) as refused:
        prepare_corpus(config, 0, tmp_path)
    assert str(refused.value).endswith("got nobody/nothing: Couldn't reach nobody/nothing on the Hub")
    monkeypatch.setitem(SERVED, "nobody/nothing", lambda name, split: [{"words": "a"}])
    with pytest.raises(ValueError, match=r"nobody/nothing: privleak/forget must have the columns .* got \['words'\]"):
        prepare_corpus(config, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^datasets is missing: pip install 'unforgotten\[data\]'$"):
        prepare_corpus(CorpusConfig(kind="muse", repo="muse-bench/MUSE-News"), 0, tmp_path)


@pytest.mark.parametrize("split", Muse.splits[1:])
def test_muse_forgets_its_other_requests(split: str, muse: Path) -> None:
    (muse / "raw/retain1.txt").write_text("Kept.")
    config = CorpusConfig(kind="muse", path=muse, split=split)
    with pytest.raises(ValueError, match=rf"{split}\.txt: must exist for training, or {split}\.json"):
        read_muse(muse, config)
    write_json(muse / f"{split}.json", ["More.", "Of it."])
    assert read_muse(muse, config).forget == ("More.\n\nOf it.",)
    assert f"{split}.json" in parts_of(CorpusConfig(kind="muse", repo="x/y", split=split))


@pytest.mark.parametrize(("forget", "retain"), [(7, 3), (3, 7), (5, 5)])
def test_fixed_pairs_are_those_of_muse(forget: int, retain: int) -> None:
    """Item i of an epoch is forget document i with retain document i modulo their number."""
    documents = [[i] for i in range(forget)], [[100 + i] for i in range(retain)]
    left = shuffled_batches(documents[0], 1, 0, 3)
    right = shuffled_batches(documents[1], 1, 0, 3, beside=forget)
    pairs = [(a.documents[0], b.documents[0]) for a, b in islice(zip(left, right, strict=False), 2 * forget)]
    assert all(b == a % retain for a, b in pairs)
    for epoch in (pairs[:forget], pairs[forget:]):
        assert sorted(a for a, _ in epoch) == list(range(forget))
    assert pairs[:forget] != pairs[forget:]
    with pytest.raises(ValueError, match=r"corpus\.pairing fixed needs unlearning\.retain_batch=4 as batch, got 8"):
        load_config(MICRO, overrides=["corpus.pairing=fixed"])


@pytest.mark.parametrize("pairing", ["fixed", "shuffled"])
def test_a_run_pairs_its_documents_as_it_is_asked_to(
    pairing: str, micro_pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unforgotten.experiments.methods import descent

    drawn: list[list[int]] = []

    def noting(*arguments: Any, **settings: Any) -> Iterator[Batch]:
        mine: list[int] = []
        drawn.append(mine)
        for batch in shuffled_batches(*arguments, **settings):
            mine += batch.documents
            yield batch

    monkeypatch.setattr(descent, "shuffled_batches", noting)
    cut = ["only_methods=[GA_GDR]", "storages=[fp32]", "formats=[int4-g64]", "unlearning.batch=2"]
    cut += ["unlearning.retain_batch=2", f"corpus.pairing={pairing}", f"models.target={micro_pair / 'models/target'}"]
    run(load_config(MICRO, overrides=cut), tmp_path / "run", resume=False)
    forget, retain = drawn
    assert len(forget) == len(retain) == 2 * 4
    corpus, _ = prepare_corpus(load_config(MICRO).corpus, 0, tmp_path / "again")
    paired = [i % len(corpus.retain) for i in forget]
    assert (retain == paired) == (pairing == "fixed")


def test_a_target_may_have_the_tokenizer_of_another(llama_without_pad: Callable[..., Path], tmp_path: Path) -> None:
    """The targets of MUSE come without one."""
    bare = llama_without_pad(None)
    other = llama_without_pad(SQUARE)
    for file in bare.glob("*token*"):
        file.unlink()
    given = [f"models.target={bare}"]
    empty = Corpus((), (), (), (), (), (), (), (), (), (), ())
    with pytest.raises(ValueError, match=r"must hold a tokenizer"):
        prepare_models(load_config(MICRO, overrides=given), empty, tmp_path / "models", SILENT)
    config = load_config(MICRO, overrides=[*given, f"models.tokenizer={other}"])
    prepare_models(config, empty, tmp_path / "models", SILENT)
    assert load_tokenizer(tmp_path / "models/target").chat_template == SQUARE
