"""A model that is spread over devices by accelerate: what it measures, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")
accelerate = pytest.importorskip("accelerate", reason="models are spread by accelerate")

from unforgotten.audit.options import Asked, read_options
from unforgotten.experiments.compute.device import place_named
from unforgotten.experiments.legs import loaded_pair
from unforgotten.experiments.legs.output import output_leg
from unforgotten.experiments.models.saved import load_model


def test_a_spread_model_measures_what_a_whole_one_does(micro_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, all of the leg: with accelerate's hooks on every module, and copies of a model that has them."""
    pair = micro_pair / "models/target", micro_pair / "models/unlearned"
    texts = micro_pair / "corpus/privleak/forget.json"
    whole = output_leg(*pair, ["int4-g64"], texts)
    hooked = 0

    def spread(folder: Path, *, device_map: Any = None, **named: Any) -> Any:
        nonlocal hooked
        model = load_model(folder, **named)
        if device_map is not None:
            model = accelerate.dispatch_model(model, device_map, force_hooks=True)
            hooked += sum(hasattr(module, "_hf_hook") for module in model.modules())
        return model

    monkeypatch.setattr(loaded_pair, "load_model", spread)
    monkeypatch.setattr(loaded_pair, "place_named", lambda name: {"model": "cpu", "lm_head": "cpu"})
    assert output_leg(*pair, ["int4-g64"], texts, device="balanced") == whole
    assert hooked > 2


def test_weights_that_wait_outside_the_model_are_refused(micro_pair: Path) -> None:
    """What is put into such a model would change nothing: accelerate takes its own copy in every pass."""
    folder = micro_pair / "models/target"
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    rule = "must fit on the devices as a whole, got model.layers.0.self_attn.q_proj.weight on none of them"
    with pytest.raises(ValueError, match=rf"^{folder}: {rule}$"):
        load_model(folder, device_map={**places, "model.layers": "disk"})
    assert load_model(folder, device_map={"": "cpu"}).device == torch.device("cpu")


def test_balanced_needs_a_gpu_and_models() -> None:
    with pytest.raises(ValueError, match=r"^--device needs --texts or --benchmark, got 'balanced'$"):
        read_options(Asked(device="balanced"), "unlearned")
    if torch.cuda.is_available():
        assert place_named("balanced") == "balanced"
    else:
        with pytest.raises(ValueError, match=r"^--device must be there, got 'balanced' where torch sees 0 GPUs$"):
            place_named("balanced")
    assert place_named("cpu") == torch.device("cpu")
