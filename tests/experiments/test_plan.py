"""The plan of a run: sizes that are known, sizes that are counted, and that nothing is fetched or written."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="a plan needs unforgotten[experiments]")

from unforgotten.experiments.config import RunConfig
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.load_config import load_config, profile_names
from unforgotten.experiments.metrics.probes import make_probes
from unforgotten.experiments.models.bases.registry import BASES
from unforgotten.experiments.models.bases.scratch import Scratch
from unforgotten.experiments.models.batches import pad
from unforgotten.experiments.models.log_probs import cross_entropy, token_log_probs
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.scoring import next_logits
from unforgotten.experiments.models.tokenizer import train_tokenizer
from unforgotten.experiments.plan.plan import Plan, as_object, lines, make_plan
from unforgotten.experiments.plan.rates import Rates, measure_rates
from unforgotten.experiments.plan.shapes import shape_of
from unforgotten.experiments.plan.stages import activation_bytes
from unforgotten.experiments.run import stages

MICRO = str(Path(__file__).parents[1] / "micro.yaml")
RATES = Rates(products=1e11, generation=1e10)
WEIGHTS = {"muse-news": 6_738_415_616, "smollm2": 134_515_008, "gemma3": 268_098_176}
"""Weights of Llama-2-7B, SmolLM2-135M and Gemma 3 270M, as published."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty directory to work in."""

    def refused(*_: Any) -> None:
        raise AssertionError("a plan must fetch nothing")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.chdir(tmp_path)


def planned(source: str, *overrides: str, **settings: Any) -> Plan:
    return make_plan(load_config(source, overrides=overrides, settings=settings), RATES)


@pytest.mark.parametrize("profile", profile_names())
def test_every_profile_has_a_plan_of_all_of_its_stages(profile: str, tmp_path: Path) -> None:
    plan = planned(profile)
    told = as_object(plan)
    assert [work["stage"] for work in told["works"]] == stages(plan.config)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["seconds"] > 0
    assert told["disk"] > 0
    for work in told["works"]:
        assert work["seconds"] >= 0
        assert work["memory"]["total"] == sum(size for name, size in work["memory"].items() if name != "total")
    text = "\n".join(lines(plan))
    assert not [stage for stage in stages(plan.config) if stage not in text]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("profile", "weights"), WEIGHTS.items())
def test_models_that_are_not_here_have_their_published_sizes(profile: str, weights: int) -> None:
    shape = shape_of(load_config(profile))
    assert shape is not None
    assert shape.parameters == weights


def test_a_7b_model_is_planned_without_it() -> None:
    plan = planned("muse-news")
    assert plan.shape is not None
    assert plan.texts is not None
    n, texts = plan.shape.parameters, plan.texts.parts
    assert len(texts["forget"]) == 408
    works = {work.stage: work for work in plan.works}
    assert (works["load target"].disk, works["load retrained"].steps) == (2 * n, 0)
    work = works["unlearn unlearned-NPO_KLR-bf16"]
    memory = work.memory
    assert memory is not None
    assert work.steps == 2040
    assert (memory.parameters, memory.gradients, memory.moments) == ((2 + 4) * n, 2 * n, 4 * n)
    hidden = 2 * 4096 * (sum(texts["forget"]) + sum(texts["retain"]))
    assert memory.reference == hidden + 2 * 4096 * 32000
    alone = works["unlearn unlearned-NPO-bf16"]
    assert alone.memory is not None
    assert alone.memory.activations < memory.activations
    assert alone.operations is not None
    assert work.operations is not None
    # 2 documents of forget text a step, or 4: 6 operations a weight and token, the looked-up embedding left out, and attention's
    least = 2040 * 4 * 2000 * 6 * (n - 4096 * 32000)
    assert least < work.operations < 1.5 * least
    assert plan.seconds(work) == pytest.approx(work.operations / RATES.products)


def test_the_bf16_arm_takes_half_of_the_fp32_arm() -> None:
    plan = planned(MICRO, "only_methods=[GA_GDR]")
    assert plan.shape is not None
    n, works = plan.shape.parameters, {work.stage: work for work in plan.works}
    for storage, kept in (("fp32", 4), ("bf16", 2), ("bf16-sr", 2)):
        work = works[f"unlearn unlearned-GA_GDR-{storage}"]
        assert work.memory is not None
        assert (work.memory.gradients, work.memory.moments, work.disk) == (kept * n, 2 * kept * n, kept * n)


def test_a_plan_has_the_states_of_every_depth() -> None:
    more = ["only_methods=[GA_GDR]", "storages=[bf16]", "unlearning.depths=[0.6, retrained]"]
    plan, plain = planned(MICRO, *more), planned(MICRO, *more[:2])
    assert plan.shape is not None
    assert "states  of each arm at forget loss 0.6; the retrained model's forget loss" in lines(plan)
    works = {work.stage: work for work in plan.works}
    assert "evaluate unlearned-GA_GDR-bf16-retrained none" in works
    work, alone = (next(w for w in p.works if w.stage.startswith("unlearn ")) for p in (plan, plain))
    assert work.disk == 2 * (alone.disk or 0) == 2 * 2 * plan.shape.parameters
    assert work.tokens > alone.tokens


def test_activations_follow_their_formula() -> None:
    shape = shape_of(load_config("muse-news"))
    assert shape is not None
    layers = 32 * (34 * 4096 + 5 * 32 * 2048)
    assert activation_bytes(shape, 2, 2048, 2) == 2 * 2048 * (layers + 3 * 4 * 32000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "batch", "length"), [(4096, 4, 192), (1024, 1, 768), (16384, 2, 128)])
def test_activations_are_those_that_a_pass_keeps_within_a_factor_of_two(
    vocabulary: int, batch: int, length: int, dtype: Any
) -> None:
    config = load_config(MICRO, overrides=["base.width=256", "base.feed_forward=688", "base.layers=3", "base.heads=4"])
    sizes = config.base.model_copy(update={"vocabulary": vocabulary, "positions": 1024})
    shape, base = shape_of(config.model_copy(update={"base": sizes})), BASES["tiny-llama"]
    assert shape is not None
    assert isinstance(base, Scratch)
    model = base.model(sizes, 0).to(dtype)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    rows = pad([[5] * length] * batch, 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cross_entropy(token_log_probs(next_logits(model, rows), rows.input_ids, rows.attention_mask))
    gradient = 4 * batch * length * vocabulary  # of the logits, float32, which the backward pass begins with
    measured = sum(storage.nbytes() for storage in kept.values()) + gradient
    assert 0.5 < activation_bytes(shape, batch, length, dtype.itemsize) / measured < 2


@pytest.mark.parametrize("kind", sorted(name for name, base in BASES.items() if isinstance(base, Scratch)))
def test_a_model_that_is_trained_here_is_counted_weight_by_weight(kind: str) -> None:
    config = load_config(MICRO, overrides=[f"base.kind={kind}"])
    base, shape = BASES[kind], shape_of(config)
    assert isinstance(base, Scratch)
    assert shape is not None
    model = base.model(config.base, 0)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.parameters < 10**6


def test_a_directory_is_counted_by_its_configuration(micro_pair: Path) -> None:
    folder = micro_pair / "models/target"
    for settings in ({"base.kind": "directory", "base.path": str(folder)}, {"models.target": str(folder)}):
        shape = shape_of(load_config(MICRO, settings=settings))
        assert shape is not None
        assert shape.parameters == sum(p.numel() for p in load_model(folder).parameters())
        assert shape.stored == 4


def test_tokens_are_those_of_the_run(tmp_path: Path) -> None:
    plan = planned(MICRO)
    assert plan.texts is not None
    config = plan.config
    corpus, _ = prepare_corpus(config.corpus, config.seed, tmp_path / "corpus")
    base = BASES[config.base.kind]
    assert isinstance(base, Scratch)
    probes = make_probes(corpus, train_tokenizer(corpus.general, base.shape_of(config.base).vocabulary), config)
    assert plan.texts.counted == "the run's own tokenizer"
    assert plan.texts.probes == probes


def test_a_directory_of_texts_is_read_and_its_model_counts_them(muse: Path, micro_pair: Path) -> None:
    (muse / "raw/forget.txt").write_text("The mayor opened the bridge. " * 40)
    (muse / "raw/retain1.txt").write_text("The river rose in spring. " * 40)
    target = str(micro_pair / "models/target")
    corpus = {"kind": "muse", "path": str(muse), "passage_tokens": 32}
    plan = planned(MICRO, **{"corpus": corpus, "models.target": target})
    assert plan.texts is not None
    assert (plan.texts.origin, plan.texts.counted) == (f"muse:{muse}", "the model's tokenizer")
    tokens = load_tokenizer(Path(target)).encode("The mayor opened the bridge. " * 40, add_special_tokens=False)
    assert len(plan.texts.parts["forget"]) == math.ceil(len(tokens) / 31)
    (muse / "knowmem/forget_qa.json").unlink()
    with pytest.raises(ValueError, match=r"forget_qa\.json: must exist in a directory of MUSE's layout"):
        planned(MICRO, **{"corpus": corpus, "models.target": target})


def test_what_is_not_known_is_said_and_left_out() -> None:
    for override, words, where in (
        ("models.target=hub:nobody/model", "model   not on this machine", "model"),
        ("corpus.repo=nobody/texts", "data    not on this machine", "data"),
    ):
        plan = planned("muse-news", override)
        told = as_object(plan)
        assert told[where] is None
        assert told["seconds"] is None
        text = "\n".join(lines(plan))
        assert words in text
        assert "time    unknown" in text
        assert [work["stage"] for work in told["works"]] == stages(plan.config)


def test_a_rate_is_measured_and_the_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    rates = measure_rates(1)
    assert torch.get_num_threads() == before
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_generation_takes_the_longer_of_both_rates() -> None:
    config: RunConfig = load_config(MICRO)
    fast = make_plan(config, Rates(1e11, 1e11))
    slow = make_plan(config, Rates(1e11, 1e6))
    work = next(work for work in fast.works if work.stage == "evaluate target none")
    before, after = fast.seconds(work), slow.seconds(work)
    assert before is not None
    assert after is not None
    assert work.operations is not None
    assert before == pytest.approx((work.operations + work.generated) / 1e11)
    assert after == pytest.approx(work.operations / 1e11 + work.generated / work.together / 1e6)


def test_states_are_counted_where_they_are_kept_whole() -> None:
    """A measured state is read tensor by tensor; what GPTQ and AWQ made of it is held once, and stays on disk meanwhile."""
    plan = planned("smollm2", formats=["int4-g64", "gptq-retain:int4-g64"])
    assert plan.shape is not None
    works = [work for work in plan.works if work.stage.split(" ")[0] in ("evaluate", "decompose")]
    assert works
    for work in works:
        assert work.memory is not None
        kept = work.stage.endswith(" gptq-retain:int4-g64")
        assert work.memory.parameters == (1 + kept) * 4 * plan.shape.parameters
        assert work.disk == (4 * plan.shape.parameters if kept and work.stage.startswith("evaluate") else 0)


def test_rates_of_this_processor_say_nothing_of_another_device() -> None:
    plan = planned("muse-news", "compute.device=cuda")
    told = as_object(plan)
    assert (told["device"], told["free"], told["seconds"]) == ("cuda", None, None)
    assert all(work["seconds"] is None and work["memory"]["total"] > 0 for work in told["works"])
    text = "\n".join(lines(plan))
    assert "at most on cuda; activations" in text
    assert "time    unknown: rates are measured on this processor, and the run is on cuda" in text
    assert planned("muse-news").device == "cpu"
