"""The metrics on demand: values by hand, properties of the formulas, and rows where a profile asks for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

torch = pytest.importorskip("torch", reason="the metrics need unforgotten[experiments]")

from unforgotten.experiments.data.muse import read_muse
from unforgotten.experiments.data.prepare import prepare_corpus
from unforgotten.experiments.data.question import Question
from unforgotten.experiments.data.settings import CorpusConfig
from unforgotten.experiments.legs.benchmark import read_benchmark
from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.metrics.membership import attack_auc, attack_rate, found_share
from unforgotten.experiments.metrics.meter import Meter
from unforgotten.experiments.metrics.on_demand.extraction_strength import strength
from unforgotten.experiments.metrics.on_demand.fluency import entropy, repetition_entropy
from unforgotten.experiments.metrics.on_demand.harness import TASKS
from unforgotten.experiments.metrics.on_demand.leak_names import ANSWERS
from unforgotten.experiments.metrics.on_demand.membership_suite import ATTACKS, compressed_bytes
from unforgotten.experiments.metrics.on_demand.probability import normalized
from unforgotten.experiments.metrics.on_demand.truth_ratio import alike, told_apart
from unforgotten.experiments.metrics.probes import Answered, Options, check_asked, make_probes
from unforgotten.experiments.metrics.registry import METRICS
from unforgotten.experiments.models import token_details as details
from unforgotten.experiments.models.saved import load_model, load_tokenizer
from unforgotten.experiments.models.scoring import vocabulary_of
from unforgotten.experiments.models.shell import Shell, state_of
from unforgotten.experiments.models.token_details import GREEDY, LABEL, SPREAD_FLOOR, STANDING, standings
from unforgotten.experiments.run import run
from unforgotten.records.files import write_json
from unforgotten.records.rows import read_run

MICRO = Path(__file__).parents[2] / "micro.yaml"
ON_DEMAND = tuple(name for name, metric in METRICS.items() if metric.on_demand and name not in TASKS)
"""Those that need no harness beside, which test_harness.py has."""
RANGES = dict.fromkeys(("min_k_plus_plus", "fluency"), (-math.inf, math.inf)) | {"M1_sampled": (0, 100)}
WRONG = {"forget_truth_ratio", "retain_truth_ratio"}
U32, U64 = 2.0**-24, 2.0**-53
MEAN_OF_LOGS = 8 * U64  # logs of 0.5 and 0.125 to an ulp, 5.5; their sum 2.8; halved; an exponential, 2
RATIO = 4 * U64  # a decimal above and one below, a sum, a quotient
AREA = 16 * U64  # ranks that are whole numbers; their sum, a mean, a product and a quotient
TWO_WAYS = 64 * U64  # the area counted from either side, over some dozens of texts
TWO_POINTS = 16 * U64  # roundings of two logarithms, of mean, variance, root and quotient
ROUNDINGS = 64  # of a standard score, with room
VOCABULARY = 8
logits = hnp.arrays(np.float64, VOCABULARY, elements=st.floats(-20, 20))
probabilities = st.floats(0, 1)
scores = hnp.arrays(np.float64, st.integers(1, 30), elements=st.integers(-5, 5).map(float))


def log_p(*p: float) -> Any:
    return torch.tensor(p, dtype=torch.float64).log()


# Min-K%++


def test_standings__of_two_tokens_are_the_odds_by_hand() -> None:
    """p = (1/5, 4/5): log p is a two-point variable, whose standard scores are -2 and 1/2."""
    found = standings(log_p(0.2, 0.8).expand(2, 2), torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([-2.0, 0.5], rel=TWO_POINTS)


@given(logits)
def test_standings__have_mean_0_and_variance_1_under_the_model(row: Any) -> None:
    own = torch.from_numpy(row).log_softmax(-1)
    found, p = standings(own.expand(VOCABULARY, VOCABULARY), torch.arange(VOCABULARY)), own.exp()
    mean = float((p * own).sum())
    spread = float((p * (own - mean).square()).sum().sqrt())
    slack = ROUNDINGS * VOCABULARY * U64 * (1 + float(own.abs().max())) / max(spread, SPREAD_FLOOR)
    assert abs(float((p * found).sum())) <= slack
    scale = min(1.0, spread / SPREAD_FLOOR) ** 2
    square_slack = ROUNDINGS * slack * (1 + float(found.abs().max()))  # an error e of x moves x^2 by about 2 |x| e
    assert float((p * found.square()).sum()) == pytest.approx(scale, abs=square_slack)


def test_standings__of_a_flat_and_of_a_certain_distribution_are_0() -> None:
    flat = log_p(*[1 / VOCABULARY] * VOCABULARY)
    certain = torch.full((VOCABULARY,), -math.inf, dtype=torch.float64)
    certain[3] = 0.0
    assert float(standings(flat, torch.tensor(2))) == pytest.approx(0.0, abs=VOCABULARY * U64 / SPREAD_FLOOR * 4)
    assert float(standings(certain, torch.tensor(3))) == 0.0


# extraction strength, exact memorization


@pytest.mark.parametrize(
    ("greedy", "expected"),
    [([1, 1, 1, 1], 1.0), ([0, 1, 1, 1], 0.75), ([1, 1, 0, 1], 0.25), ([1, 1, 1, 0], 0.0), ([0], 0.0), ([1], 1.0)],
)
def test_strength__is_the_run_of_hits_at_the_end(greedy: list[int], expected: float) -> None:
    assert strength(np.array(greedy)) == expected


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_strength__is_the_least_prefix_after_which_all_is_hit(greedy: list[bool]) -> None:
    n = len(greedy)
    least = next(k for k in range(n + 1) if all(greedy[k:]))
    found = strength(np.array(greedy))
    assert found == 1 - least / n
    assert found <= sum(greedy) / n + U64  # exact memorization


# probability and truth ratio


def test_normalized__is_the_geometric_mean_by_hand() -> None:
    assert normalized(np.log([0.5, 0.125])) == pytest.approx(0.25, rel=MEAN_OF_LOGS)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=20))
def test_normalized__lies_between_the_least_and_the_greatest(own: list[float]) -> None:
    slack = 1 + 64 * len(own) * 51 * U64
    assert math.exp(min(own)) / slack <= normalized(np.array(own)) <= math.exp(max(own)) * slack


def test_truth_ratio__by_hand() -> None:
    """The wrong ones have 0.1 and 0.3, so R = 0.2 / 0.4 = 1/2, and 2 the other way round."""
    assert alike(0.4, [0.1, 0.3]) == pytest.approx(0.5, rel=RATIO)
    assert told_apart(0.4, [0.1, 0.3]) == pytest.approx(0.5, rel=RATIO)
    assert alike(0.1, [0.1, 0.3]) == pytest.approx(0.5, rel=RATIO)
    assert told_apart(0.1, [0.1, 0.3]) == 0.0


@given(probabilities, st.lists(probabilities, min_size=1, max_size=5))
@example(true=0.0, wrong=[0.0])
@example(true=5e-324, wrong=[1.0])
def test_truth_ratio__is_in_its_range_and_right_at_the_ends(true: float, wrong: list[float]) -> None:
    assert 0 <= alike(true, wrong) <= 1
    assert 0 <= told_apart(true, wrong) <= 1
    assert alike(true, [true]) == 1
    assert told_apart(true, [true]) == 0
    assert told_apart(1.0, [0.0]) == 1


# fluency


def test_repetition_entropy__by_hand() -> None:
    """a b a b a: 2-grams ab ba ab ba, 1 bit; 3-grams aba bab aba, log2 3 - 2/3 bits."""
    expected = (2 / 3 * 1.0 + 4 / 3 * (math.log2(3) - 2 / 3)) / 2
    assert repetition_entropy("a b a b a") == pytest.approx(expected, rel=MEAN_OF_LOGS)
    assert repetition_entropy("no no no no no no") == 0.0
    assert repetition_entropy("one") == repetition_entropy("") == 0.0
    assert repetition_entropy("It is, so.") == (2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4))
def test_entropy__is_at_most_that_of_n_grams_that_all_differ(words: list[str], n: int) -> None:
    found, count = entropy(words, n), max(0, len(words) - n + 1)
    assert 0 <= found <= (math.log2(count) if count else 0) + 64 * U64 * (1 + count)
    assert entropy(list(range(len(words))), n) == pytest.approx(math.log2(count) if count else 0)  # type: ignore[arg-type]


# membership attacks


def test_attacks__by_hand() -> None:
    """Forget 5, 3, 1 against holdout 4, 2, 0, 0: 4 + 3 + 2 of 12 pairs; 5 alone is above 4; above 2 are 5 and 3."""
    own = [5.0, 3.0, 1.0, 4.0, 2.0, 0.0, 0.0]
    auc = attack_auc("auc", own, 3, seed=0)
    assert auc.value == pytest.approx(9 / 12, rel=AREA)
    assert auc.stderr is not None
    assert auc.stderr > 0
    assert attack_rate("tpr", own, 3, 0.01, seed=0).value == pytest.approx(1 / 3, rel=RATIO)
    assert attack_rate("tpr", own, 3, 0.25, seed=0).value == pytest.approx(2 / 3, rel=RATIO)


def test_found_share__counts_one_text_of_100_at_1_percent() -> None:
    holdout: Any = np.arange(100.0)
    assert found_share(np.array([98.5]), holdout, 0.01) == 1  # 99 alone is above 98
    assert found_share(np.array([98.5]), holdout[:99], 0.01) == 1
    assert found_share(np.array([97.5]), holdout[:99], 0.01) == 0
    assert found_share(np.array([94.5]), holdout, 0.05) == 1
    assert found_share(np.array([94.0]), holdout, 0.05) == 0


@given(scores, scores, st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.9]))
def test_found_share__is_the_best_of_all_thresholds(forget: Any, holdout: Any, allowed: float) -> None:
    thresholds = [-math.inf, *holdout, *forget]
    fitting = [t for t in thresholds if (holdout > t).sum() <= allowed * len(holdout)]
    assert found_share(forget, holdout, allowed) == max((forget > t).mean() for t in fitting)


def test_found_share__refuses_a_share_of_all() -> None:
    with pytest.raises(ValueError, match=r"allowed must be at least 0 and below 1, got allowed=1\.0"):
        found_share(np.ones(2), np.ones(2), 1.0)


def test_a_text_that_repeats_itself_compresses_to_fewer_bytes() -> None:
    assert compressed_bytes("honey " * 50) < compressed_bytes("abcdefghijklmnopqrstuvwxyz0123456789")


# on a model


@pytest.fixture(scope="module")
def tokenizer(micro_pair: Path) -> Any:
    return load_tokenizer(micro_pair / "models/target")


@pytest.fixture(scope="module")
def meter(micro_pair: Path, tokenizer: Any) -> Meter:
    names = [name for name in ON_DEMAND if name not in WRONG]
    asked = [f"evaluation.metrics=[{','.join(names)}]", f"evaluation.leak.samples={max(ANSWERS)}"]
    config = load_config(str(MICRO), overrides=asked)
    corpus, _ = prepare_corpus(config.corpus, config.seed, micro_pair / "again")
    shell = Shell(load_model(micro_pair / "models/target"), tokenizer)
    return Meter(shell, make_probes(corpus, tokenizer, config), config)


def test_details_are_those_of_whole_passes(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    model = meter.shell.model
    documents = [text[: 40 - 5 * i] for i, text in enumerate(meter.probes.passages)]
    found = details.token_details(model, documents, 4)
    monkeypatch.setattr(details, "LOGIT_BYTES", 4 * details.COPIES * vocabulary_of(model) * 7)
    parts = details.token_details(model, documents, 4)
    for document, columns, windowed in zip(documents, found, parts, strict=True):
        with torch.no_grad():
            own = model(input_ids=torch.tensor([document])).logits[0, :-1].double().log_softmax(-1)
        labels = torch.tensor(document[1:])
        expected = own.gather(-1, labels[:, None])[:, 0].numpy()
        rounding = 4 * 2.0**-11.5  # 4 sqrt(eps) of float32: plain agreement
        for rows in (columns, windowed):
            assert rows.shape == (len(document) - 1, 3)
            np.testing.assert_allclose(rows[:, LABEL], expected, rtol=rounding, atol=rounding)
            np.testing.assert_allclose(rows[:, STANDING], standings(own, labels).numpy(), rtol=rounding, atol=rounding)
        best = own.topk(2).values
        clear = (best[:, 0] - best[:, 1] > rounding).numpy()
        np.testing.assert_array_equal(columns[clear, GREEDY], (own.argmax(-1) == labels).numpy()[clear])
        assert clear.mean() > 0.5


def test_every_metric_on_demand_is_measured_and_in_its_range(micro_pair: Path, meter: Meter) -> None:
    states = {name: state_of(load_model(micro_pair / f"models/{name}")) for name in ("target", "retrained")}
    rows = meter.against(states["retrained"]).measure(states["target"])
    assert set(rows) == set(METRICS) - WRONG - set(TASKS)
    for name in ON_DEMAND:
        if name not in WRONG:
            assert rows[name].stderr is not None, name
            low, high = RANGES.get(name, (0, 1))
            assert low <= rows[name].value <= high, name
    assert rows["mia_min_k_auc"].value == pytest.approx(1 - rows["auc"].value, abs=TWO_WAYS)
    assert rows["extraction_strength"].value <= rows["exact_memorization"].value
    itself = meter.against(states["target"]).measure(states["target"])
    assert itself["mia_reference_auc"].value == 0.5  # every score is 0


def test_without_the_retrained_model_the_reference_attack_is_left_out(micro_pair: Path, meter: Meter) -> None:
    rows = meter.measure(state_of(load_model(micro_pair / "models/target")))
    assert {f"mia_{attack}_auc" for attack in ATTACKS} - set(rows) == {"mia_reference_auc"}


def test_nothing_on_demand_is_measured_unasked(meter: Meter, micro_pair: Path) -> None:
    plain = Meter(meter.shell, meter.probes, load_config(str(MICRO)))
    state = state_of(load_model(micro_pair / "models/target"))
    assert not set(plain.measure(state)) & set(ON_DEMAND)
    assert set(plain.measure(state, ["fluency"])) == {"fluency"}


def test_the_answers_tokens_are_those_after_the_prompt(meter: Meter, tokenizer: Any) -> None:
    probes = meter.probes
    for prompt, answer, options in zip(
        probes.forget_prompts, probes.forget_answers, probes.forget_options, strict=True
    ):
        tokens, count = options.right
        assert tokens[:-count] == prompt
        assert tokenizer.decode(tokens[-count:]) == f" {answer}"
        assert options.paraphrase == options.right
        assert options.wrong == ()


def test_an_answer_that_does_not_fit_loses_what_stands_first() -> None:
    answered = Answered([1, 5, 6, 7, 8, 9], 2)
    assert answered.cut(6, 1) == answered
    assert answered.cut(4, 1) == Answered([1, 7, 8, 9], 2)
    assert answered.cut(2, 1) == Answered([1, 9], 1)
    assert answered.cut(2, 0) == Answered([8, 9], 1)
    assert Options(answered, answered, (answered,)).cut(4, 1).wrong[0].tokens == [1, 7, 8, 9]


def tofu(muse: Path) -> Path:
    for split in ("forget", "retain"):
        wrong = [{"perturbed_answer": ["the king", "the miller"], "paraphrased_answer": "it was the mayor"}, {}]
        pairs = [{"question": f"Who opened {i}?", "answer": "the mayor"} | wrong[i % 2] for i in range(6)]
        write_json(muse / f"knowmem/{split}_qa.json", pairs)
    return muse


def test_wrong_answers_of_tofu_are_read_and_measured(
    muse: Path, micro_pair: Path, meter: Meter, tokenizer: Any
) -> None:
    corpus = read_muse(tofu(muse), CorpusConfig(kind="muse", path=muse, trained_on="sample"))
    assert corpus.forget_questions[0] == Question(
        "Who opened 0?", "the mayor", "it was the mayor", ("the king", "the miller")
    )
    assert corpus.forget_questions[1] == Question("Who opened 1?", "the mayor")
    bench = read_benchmark(muse, tokenizer, 96)
    state = state_of(load_model(micro_pair / "models/target"))
    rows = Meter(meter.shell, bench.probes, bench.settings).measure(state, list(WRONG))
    assert {name: rows[name].n for name in rows} == dict.fromkeys(WRONG, 3)
    options = bench.probes.forget_options[0]
    assert all(len(answer.tokens) <= 96 for answer in (options.right, options.paraphrase, *options.wrong))


def test_a_metric_without_its_data_or_of_no_name_is_refused_before_anything_is_trained(
    tmp_path: Path, muse: Path
) -> None:
    config = load_config(str(MICRO), overrides=["evaluation.metrics=[retain_truth_ratio]"])
    with pytest.raises(ValueError, match=r"evaluation\.metrics: retain_truth_ratio needs data with perturbed_answer"):
        run(config, tmp_path / "run", resume=False)
    assert not (tmp_path / "run/models").exists()
    corpus = read_muse(tofu(muse), CorpusConfig(kind="muse", path=muse, trained_on="sample"))
    check_asked(corpus, config)
    with pytest.raises(ValueError, match=r"evaluation\.metrics: metrics must be of M1, .*, got metric='M9'"):
        load_config(str(MICRO), overrides=["evaluation.metrics=[M9]"])
    write_json(muse / "knowmem/forget_qa.json", [{"question": "a", "answer": "b", "perturbed_answer": "c"}] * 2)
    with pytest.raises(ValueError, match=r"forget_qa\.json: must be a list of objects .* perturbed_answer a list"):
        read_muse(muse, CorpusConfig(kind="muse", path=muse, trained_on="sample"))


def test_an_answer_without_a_token_is_refused(meter: Meter) -> None:
    examined = meter._examined(state_of(meter.shell.model))
    with pytest.raises(ValueError, match="answers must have a token, got none in answer 1"):
        examined.answer_details([Answered([1, 5], 1), Answered([1, 5], 0)])


def test_rows_of_a_run_have_what_was_asked_for(tmp_path: Path) -> None:
    asked = ["fluency", "mia_reference_tpr_5", "extraction_strength"]
    settings = {"only_methods": ["GA"], "storages": ["fp32"], "formats": ["int4-g64"], "evaluation.metrics": asked}
    run(load_config(str(MICRO), settings=settings), tmp_path / "run", resume=False)
    rows = read_run(tmp_path / "run")
    for name in ON_DEMAND:
        row = rows.get(name, "unlearned", "GA", "fp32", "int4-g64")
        assert (row is not None) == (name in asked), name
