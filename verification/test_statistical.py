from __future__ import annotations

from pathlib import Path

import pytest

from unforgotten.verification.chance import SEED_VARIABLE, bernstein_radius, hoeffding_radius, rng_for, sample_seed
from unforgotten.verification.recording.statistical import TOO_SLOW, sampling_tests, statistical_tests

HERE = Path(__file__).parent
SOURCE = """
from x import rng_for
@fixture
def sample(): return helper(3)
def helper(n): return rng_for(n)
class Machine:
    def draw(self): return helper(1)
def test_direct__x(): rng_for(1)
def test_helper__x(): helper(2)
def test_fixture__x(sample): pass
def test_class__x(): Machine().draw()
def test_loop__x(): test_loop__x
def test_exact__x(): other()
"""


def test_sampling_tests__are_those_that_reach_the_generator() -> None:
    assert sampling_tests(SOURCE) == {f"test_{name}__x" for name in ("direct", "helper", "fixture", "class")}


def test_statistical_tests__name_real_tests() -> None:
    assert "test_flip_probability__is_the_rate_of_random_positions" in statistical_tests(HERE / "test_flips.py")
    every = {t for f in HERE.glob("test_*.py") for t in sampling_tests(f.read_text())}
    assert every >= TOO_SLOW


def test_rng_for__draws_others_under_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first() -> int:
        return int(rng_for("a", 1).integers(2**60))

    monkeypatch.delenv(SEED_VARIABLE, raising=False)
    plain = first()
    monkeypatch.setenv(SEED_VARIABLE, "0")
    assert first() == plain
    monkeypatch.setenv(SEED_VARIABLE, "7")
    assert sample_seed() == 7
    assert first() == first() != plain


@pytest.mark.parametrize("text", ["", "-1", "x", "1.5"])
def test_sample_seed__refuses_what_is_no_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEED_VARIABLE, text)
    with pytest.raises(ValueError, match=f"{SEED_VARIABLE} must be a number"):
        sample_seed()


def test_bernstein_radius__beats_hoeffding_where_the_variance_is_small() -> None:
    assert bernstein_radius(0.001, 10**6) < hoeffding_radius(10**6) < bernstein_radius(0.25, 10**6)
    assert bernstein_radius(0.1, 1000, looks=64) > bernstein_radius(0.1, 1000)
