"""States kept on the way of a descent: the nearest to the depth, known within a step, and nothing that was not reached."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="methods need unforgotten[experiments]")

from unforgotten.experiments.methods.method import Outcome, keeps_states
from unforgotten.experiments.methods.registry import METHODS
from unforgotten.experiments.methods.states import Goal
from unforgotten.experiments.methods.waypoints import Keep, Waypoints
from unforgotten.experiments.models.scoring import mean_loss
from unforgotten.records.depths import END
from unforgotten.verification.domains.micro_target import micro_target, micro_task

STEPS = 60


def walked(curve: list[float], goals: list[Goal], keep: Keep = "nearest") -> tuple[Waypoints, list[int]]:
    """Waypoints that were told of a curve of losses, and the steps at which they asked for them; weights are the losses."""
    now, asked = 0, []
    waypoints = Waypoints(goals, keep, 10, lambda: {"loss": torch.tensor(curve[now], dtype=torch.float64)})
    waypoints.see(0, curve[0])
    for now in range(1, len(curve)):
        if waypoints.due(now) or now == len(curve) - 1:
            asked.append(now)
            waypoints.see(now, curve[now])
        if waypoints.done:
            break
    return waypoints, asked


@given(st.floats(0.02, 0.3), st.floats(0.0, 0.02), st.lists(st.floats(0.2, 3.0), min_size=1, max_size=3, unique=True))
def test_the_state_kept_is_the_nearest_of_all_steps(rise: float, bend: float, wanted: list[float]) -> None:
    """Of a loss that rises and does not bend too fast; twice the first step's rise is what the checks allow for."""
    curve = [0.1 + rise * n + bend * rise * n * n / 2 for n in range(STEPS)]
    goals = [Goal(str(w), loss=w) for w in wanted]
    waypoints, _ = walked(curve, goals)
    reached, missed = waypoints.end("max_steps")
    for state in reached:
        if state.depth != END:
            best = min(abs(loss - float(state.depth)) for loss in curve[1:])  # the target itself is not kept
            assert abs(state.forget_loss - float(state.depth)) == best
            assert state.within == 1
            assert curve[state.steps] == state.forget_loss == float(state.weights["loss"])
    assert {m.depth for m in missed} == {str(w) for w in wanted if w > curve[-1]}


def test_checks_are_few_far_from_a_depth_and_every_step_near_it() -> None:
    curve = [0.01 * n for n in range(301)]
    _, asked = walked(curve, [Goal("2.9", loss=2.9)])
    assert len(asked) < 45
    assert asked[-2:] == [289, 290]


def test_a_loss_that_jumps_is_found_later_and_said_so() -> None:
    curve = [0.0, 0.001, *([0.002] * 5), *([5.0] * 30)]
    waypoints, _ = walked(curve, [Goal("1.0", loss=1.0)])
    ((state,), missed) = waypoints.end("goals")
    assert missed == ()
    assert state.forget_loss in (0.001, 0.002)  # 0.001 is a check, 0.002 may be
    assert state.within is not None
    assert state.within > 1


def test_last_is_the_fixed_rule() -> None:
    curve = [0.05 * n for n in range(STEPS)]
    waypoints, asked = walked(curve, [Goal("0.6", loss=0.6)], "last")
    ((state,), _) = waypoints.end("goals")
    assert (state.steps, asked) == (20, [10, 20])


def test_numbers_of_steps_are_kept_beside_depths() -> None:
    curve = [0.05 * n for n in range(STEPS)]
    waypoints, _ = walked(curve, [Goal("1.0", loss=1.0), Goal("steps7", steps=7)])
    reached, missed = waypoints.end("goals")
    assert [(s.depth, s.steps, s.stopped) for s in reached] == [("1.0", 20, "forget_loss"), ("steps7", 7, "steps")]
    assert missed == ()


def test_nothing_claims_a_depth_that_was_not_reached() -> None:
    curve = [0.5 + 0.01 * n for n in range(STEPS)]
    waypoints, _ = walked(curve, [Goal("0.2", loss=0.2), Goal("9.0", loss=9.0)])
    reached, missed = waypoints.end("max_steps")
    assert [(s.depth, s.steps, s.stopped) for s in reached] == [(END, STEPS - 1, "max_steps")]
    assert [(m.depth, m.stopped) for m in missed] == [("0.2", "start"), ("9.0", "max_steps")]


def test_a_run_with_nothing_to_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depths must be above the target's forget loss 0\.5, got 0\.2, 0\.4$"):
        walked([0.5, 0.6], [Goal("0.4", loss=0.4), Goal("0.2", loss=0.2)])


def test_a_loss_that_is_no_number_reaches_nothing() -> None:
    waypoints, _ = walked([0.5, *([math.nan] * 30)], [Goal("0.6", loss=0.6)])
    reached, missed = waypoints.end("max_steps")
    assert [s.depth for s in reached] == [END]
    assert [m.depth for m in missed] == ["0.6"]


def unlearned(method: str, storage: Any, goals: tuple[Goal, ...], **common: Any) -> tuple[Any, Outcome, Any]:
    model, task = micro_target(), micro_task(storage, **common)
    task = replace(task, goals=goals)
    return model, METHODS[method].unlearn(model, task, METHODS[method].settings()), task


@pytest.mark.parametrize("storage", ["fp32", "bf16", "bf16-sr"])
def test_weights_kept_have_the_loss_that_is_said_of_them(storage: Any) -> None:
    start = mean_loss(micro_target(), micro_task(storage).watched, 4)
    goals = (Goal("a", loss=start + 0.1), Goal("b", loss=start + 0.4), Goal("steps2", steps=2))
    model, outcome, task = unlearned("GA", storage, goals, max_steps=40, lr=2e-3)
    assert [s.depth for s in outcome.reached] == ["a", "b", "steps2"]
    assert (outcome.stopped, outcome.missed) == ("goals", ())
    for state in outcome.reached:
        assert {w.dtype for w in state.weights.values()} == {task.arithmetic.parameters}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state.weights[name])
        with task.arithmetic.computing():
            assert mean_loss(model, task.watched, 4 * task.common.batch) == state.forget_loss


def test_arms_end_nearer_to_a_depth_than_by_the_fixed_rule() -> None:
    start = mean_loss(micro_target(), micro_task("fp32").watched, 4)
    goal = Goal("a", loss=start + 0.3)
    found = {
        keep: [unlearned("GA", s, (goal,), max_steps=60, lr=2e-3, keep=keep)[1].reached[0] for s in ("fp32", "bf16-sr")]
        for keep in ("nearest", "last")
    }
    for near, late in zip(found["nearest"], found["last"], strict=True):
        assert near.depth == late.depth == "a"
        assert abs(near.forget_loss - (start + 0.3)) <= abs(late.forget_loss - (start + 0.3))
        assert near.within == 1


def test_keeping_states_changes_no_step() -> None:
    with_goals, kept, _ = unlearned("NPO_KLR", "fp32", (Goal("steps3", steps=3), Goal("steps9", steps=9)), max_steps=9)
    without, plain, _ = unlearned("NPO_KLR", "fp32", (), max_steps=9, stop_forget_loss=99.0)
    assert kept.steps == plain.steps == 9
    assert plain.reached == ()
    assert plain.missed == ()
    for (name, a), b in zip(with_goals.named_parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, kept.reached[1].weights[name])


def test_methods_that_keep_states_do() -> None:
    """One of each kind; those whose weights are made after the descent keep none, and a configuration refuses them."""
    assert keeps_states(METHODS["IdkNLL"])
    for name in ("GA_SAM", "NPO_STE", "GA_SURE", "GA_SURE_as_released", "RMU", "SimNPO", "UNDIAL"):
        assert keeps_states(METHODS[name])
        _, outcome, _ = unlearned(name, "fp32", (Goal("steps1", steps=1),), max_steps=3)
        assert [s.depth for s in outcome.reached] == ["steps1"]
    assert not any(keeps_states(METHODS[name]) for name in ("GA_LoRA", "TaskVector", "GA_GDR_push"))
