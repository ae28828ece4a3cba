"""SimNPO, UNDIAL, IdkNLL, IdkDPO, RMU and the task vector: each loss is its formula, each method forgets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments.config import Storage
from unforgotten.experiments.methods.literature.refusal import (
    REFUSALS,
    Continued,
    answer_log_probs,
    direct_preference,
    split,
)
from unforgotten.experiments.methods.literature.rmu import random_direction, steered_distance
from unforgotten.experiments.methods.literature.simnpo import simple_preference
from unforgotten.experiments.methods.literature.task_vector import negated
from unforgotten.experiments.methods.literature.undial import adjusted_distillation
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.models.batches import pad
from unforgotten.experiments.models.log_probs import TokenLogProbs
from unforgotten.experiments.models.scoring import mean_loss, next_logits
from unforgotten.experiments.models.tokenizer import train_tokenizer
from unforgotten.verification.domains.micro_target import VOCABULARY, micro_target, micro_task

U32 = 2.0**-24  # half an ulp of float32 at 1
SLACK = 64 * U32  # roundings of some exponentials, logarithms and short sums, relative
EXP_LOG = 8  # roundings of an exponential and a logarithm, beside the terms of their sum
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
RETAIN = ("", "_GDR", "_KLR")
seeds = st.integers(0, 2**16)


def draw(seed: int, *shape: int) -> Any:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_simnpo_by_hand() -> None:
    """Two documents of 3 and 2 tokens, mean log p -1 and -2; beta 0.5, gamma 0.25: -4 mean(ls(0.25), ls(0.75))."""
    label = torch.tensor([[-0.5, -1.0, -1.5], [-1.0, -3.0, 0.0]])
    expected = -4 * (log_sigmoid(0.5 - 0.25) + log_sigmoid(1.0 - 0.25)) / 2
    assert float(simple_preference(TokenLogProbs(label, MASK), 0.5, 0.25)) == pytest.approx(expected, rel=SLACK)


@given(seeds, st.floats(0.05, 5))
def test_simnpo_weighs_every_document_by_its_length(seed: int, beta: float) -> None:
    """d L / d log p(token) = 2 sigmoid(beta mean log p + gamma) / (n |y|): at most 2 / (n |y|), which GA's has not."""
    label = (-draw(seed, 2, 3).abs()).masked_fill(~MASK, 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(simple_preference(TokenLogProbs(label, MASK), beta, 0.3), label)
    for row, length in enumerate((3, 2)):
        mean = float(label[row].detach().double().sum()) / length
        expected = 2 / (1 + math.exp(-(beta * mean + 0.3))) / (2 * length)
        assert gradient[row, :length].tolist() == pytest.approx([expected] * length, rel=SLACK)


def test_undial_by_hand() -> None:
    """One token of two, target logits (log 3, 0), lowered by log 3: soft labels (1/2, 1/2); model logits (0, log 3)."""
    three = math.log(3)
    target, model = torch.tensor([[[three, 0.0]]]), torch.tensor([[[0.0, three]]])
    found = adjusted_distillation(model, target, torch.tensor([[0]]), torch.tensor([[True]]), three)
    assert float(found) == pytest.approx(-0.5 * math.log(1 / 4) - 0.5 * math.log(3 / 4), rel=SLACK)


@given(seeds, st.floats(0, 30))
def test_undial_is_least_at_the_adjusted_target(seed: int, strength: float) -> None:
    """Its gradient there is 0, and what is masked counts nothing."""
    target, tokens = draw(seed, 2, 3, 5), torch.randint(5, (2, 3), generator=torch.Generator().manual_seed(seed))
    adjusted = target.clone()
    for row in range(2):
        for place in range(3):
            adjusted[row, place, tokens[row, place]] -= strength
    adjusted.requires_grad_()
    least = adjusted_distillation(adjusted, target, tokens, MASK, strength)
    (gradient,) = torch.autograd.grad(least, adjusted)
    assert float(gradient.abs().max()) <= SLACK
    other = adjusted_distillation(draw(seed + 1, 2, 3, 5), target, tokens, MASK, strength)
    assert float(other) >= least.item() - SLACK * abs(least.item())
    beyond = torch.where(MASK[..., None], adjusted.detach(), 50.0)
    assert torch.equal(adjusted_distillation(beyond, target, tokens, MASK, strength), least.detach())


def test_dpo_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 0.5])
    expected = -10 * (log_sigmoid(0.1 * 2.0) + log_sigmoid(0.1 * -2.5)) / 2
    assert float(direct_preference(chosen, rejected, 0.1)) == pytest.approx(expected, rel=SLACK)


def test_an_answer_is_what_follows_its_question() -> None:
    model = micro_target()
    rows, starts = [[1, 280, 5, 7, 9], [1, 281, 6]], [2, 1]
    with torch.no_grad():
        found, tokens = answer_log_probs(model, Continued(rows, starts))
        logits = next_logits(model, pad(rows, 0))
        for k, (row, start) in enumerate(zip(rows, starts, strict=True)):
            log_p = logits[k].double().log_softmax(-1)
            expected = [float(log_p[i - 1, row[i]]) for i in range(start, len(row))]
            largest = float(logits[k].abs().max())
            slack = len(expected) * (
                (VOCABULARY + EXP_LOG) * U32 + 2 * largest * U32
            )  # of a log-softmax, and of its terms
            assert float(found[k]) == pytest.approx(sum(expected), abs=slack)
    assert tokens.tolist() == [3, 2]


def with_tokenizer(storage: Storage, **common: Any) -> Any:
    task = micro_task(storage, **common)
    return dataclasses.replace(task, tokenizer=train_tokenizer([" ".join(REFUSALS)] * 4, VOCABULARY))


def test_a_document_is_split_and_its_answer_refused() -> None:
    task = with_tokenizer("fp32")
    refused, own = split(task, 0.4)
    said = set()
    for document, row, answer, start in zip(task.forget, refused.rows, own.rows, refused.starts, strict=True):
        assert start == int(0.4 * len(document))
        assert list(row[:start]) == list(document[:start])
        assert list(answer) == list(document)
        said.add(task.tokenizer.decode(row[start:], skip_special_tokens=True))
    assert said <= set(REFUSALS)
    assert len(said) > 1
    assert split(task, 0.4) == (refused, own)
    with pytest.raises(ValueError, match="task must have a tokenizer"):
        METHODS["IdkDPO"].unlearn(micro_target(), micro_task(), METHODS["IdkDPO"].settings())


def test_rmu_by_hand() -> None:
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0], [9.0, 9.0]]])
    real, goal = torch.tensor([[True, True], [True, False]]), torch.tensor([0.0, 1.0])
    assert float(steered_distance(hidden, real, goal)) == (2 + 1 + 18) / 3
    u = random_direction(64, seed=5)
    assert float(u.norm()) == pytest.approx(1.0, rel=SLACK)
    assert float(u.min()) >= 0
    assert torch.equal(u, random_direction(64, seed=5))


def test_rmu_moves_the_second_matrices_of_three_layers_at_most() -> None:
    model, method = micro_target(), METHODS["RMU"]
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    outcome = method.unlearn(model, micro_task(max_steps=3), method.settings(layer=1))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, old[name])}
    assert moved == {f"model.layers.{k}.mlp.down_proj.weight" for k in (0, 1)}
    assert all(p.requires_grad for p in model.parameters())
    assert outcome.settings["alpha"] == 1200.0
    assert outcome.settings["optimizer"] is None
    with pytest.raises(ValueError, match="layer must be below the 2 layers of the model, got layer=2"):
        method.unlearn(model, micro_task(), method.settings(layer=2))


def test_rmu_steers_the_hidden_states() -> None:
    """The forget states come nearer to c u than they were."""
    from unforgotten.experiments.methods.literature.rmu import hidden_states
    from unforgotten.experiments.models.batches import pad

    model, method, task = micro_target(), METHODS["RMU"], micro_task(max_steps=60, lr=3e-3)
    batch = pad(task.forget, 0)
    goal = 2.0 * random_direction(64, task.seed)

    def distance() -> float:
        with torch.no_grad():
            states = hidden_states(model, batch, model.model.layers[1])
        return float(steered_distance(states, batch.attention_mask.bool(), goal))

    before = distance()
    method.unlearn(model, task, method.settings(layer=1, steering=2.0, alpha=1.0))
    assert distance() < 0.9 * before


@given(seeds, st.floats(0.1, 4))
def test_the_task_vector_is_subtracted(seed: int, strength: float) -> None:
    before, after = draw(seed, 4, 3), draw(seed + 1, 4, 3)
    expected = before.double() - strength * (after.double() - before.double())
    size = (1 + strength) * (before.abs() + after.abs())
    assert bool(((negated(before, after, strength) - expected).abs() <= 4 * U32 * size).all())


def test_the_task_vector_is_that_of_training_on_the_forget_text() -> None:
    """With strength s the update is -s times that of the trained model, whatever the method did on the way."""
    method, start = METHODS["TaskVector"], micro_target()
    found = []
    for strength in (1.0, 2.0):
        model = micro_target()
        method.unlearn(model, micro_task(max_steps=5), method.settings(strength=strength))
        found.append({name: p.detach() for name, p in model.named_parameters()})
    for name, p in start.named_parameters():
        one, two = (f[name].double() - p.detach().double() for f in found)
        assert bool(((two - 2 * one).abs() <= 8 * U32 * (p.detach().abs() + one.abs())).all()), name
    assert any(not torch.equal(found[0][name], p) for name, p in start.named_parameters())


STEPS = {"RMU": 60, "UNDIAL": 30}
SETTINGS: dict[str, dict[str, Any]] = {
    "RMU": {"layer": 1, "alpha": 0.0, "steering": 20.0, "lr": 1e-2},
    "TaskVector": {"strength": 5.0},
}
NAMES = [f"{name}{retain}" for name in ("SimNPO", "UNDIAL", "IdkDPO") for retain in RETAIN] + ["RMU", "TaskVector"]


@pytest.mark.parametrize("storage", ["fp32", "bf16", pytest.param("bf16-sr", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", NAMES)
def test_it_forgets_in_every_arm(name: str, storage: Storage) -> None:
    model, method = micro_target(), METHODS[name]
    task = with_tokenizer(storage, max_steps=STEPS.get(name, 15), lr=2e-3)
    task.arithmetic.cast(model)
    before = mean_loss(model, task.forget, 4)
    settings = method.settings(**SETTINGS.get(name, {}))
    outcome = method.unlearn(model, task, settings)
    assert outcome.forget_loss > before + 0.1
    assert {p.dtype for p in model.parameters()} == {task.arithmetic.parameters}
    assert method.source
    for key, value in settings.model_dump(exclude_none=True).items():
        assert outcome.settings[key] == value


@pytest.mark.parametrize("retain", RETAIN)
def test_idk_nll_makes_refusals_likely(retain: str) -> None:
    model, method, task = micro_target(), METHODS[f"IdkNLL{retain}"], with_tokenizer("fp32", max_steps=15)

    def likely() -> float:
        with torch.no_grad():
            return float(answer_log_probs(model, split(task, 0.4)[0])[0].sum())

    before = likely()
    method.unlearn(model, task, method.settings())
    assert likely() > before + 1


def test_grad_diff_is_ga_gdr() -> None:
    """What the field calls GradDiff is here under MUSE's name, and DPO with refusals is IdkDPO."""
    assert {"GradDiff", "DPO"}.isdisjoint(METHODS)
    assert "with GDR, GradDiff elsewhere" in METHODS["GA_GDR"].source
    assert "DPO" in METHODS["IdkDPO"].statement
