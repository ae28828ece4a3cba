"""The tiny profile can show what it is for: five seeds, every constrained method, both storage arms. Nightly."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the loop needs unforgotten[experiments]")

from unforgotten.experiments.load_config import load_config
from unforgotten.experiments.run import run
from unforgotten.records.rows import Run, read_run

CONSTRAINED = ("GA_GDR", "GA_KLR", "NPO_GDR", "NPO_KLR")
FOUR_BIT = ("int4-g64", "int4-row", "nf4-b64", "fp4-b64")


def value(
    result: Run, metric: str, model: str, method: str | None = None, storage: str | None = None, format: str = "none"
) -> float:
    found = result.value(metric, model, method, storage, format)
    assert found is not None
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5))
def test_tiny_memorizes_survives_four_bits_and_forgets(seed: int, tmp_path: Path) -> None:
    overrides = [
        f"only_methods=[{','.join(CONSTRAINED)}]",
        f"formats=[{','.join(FOUR_BIT)}]",
        "unlearning.depths=[0.6]",
    ]
    config = load_config("tiny", seed=seed, overrides=overrides)
    run(config, tmp_path / "run", resume=False)
    (result,) = read_run(tmp_path / "run").by_depth()
    target = value(result, "M1", "target")
    assert target >= 90
    assert value(result, "M2", "target") >= 80
    assert all(value(result, "M1", "target", format=name) >= 80 for name in FOUR_BIT)
    halfway = (target + value(result, "M1", "retrained")) / 2
    useful = 0.6 * value(result, "M4", "target")
    for method in CONSTRAINED:
        for storage in config.storages:
            assert value(result, "M1", "unlearned", method, storage) <= halfway, (method, storage)
            assert value(result, "M4", "unlearned", method, storage) >= useful, (method, storage)
