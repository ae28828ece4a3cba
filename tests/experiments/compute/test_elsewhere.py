"""No tensor of a run stays on the CPU by mistake: a whole run goes on a device that meets no tensor of the CPU, see `elsewhere.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the loop needs unforgotten[experiments]")

SCRIPT = Path(__file__).with_name("run_elsewhere.py")
MICRO = Path(__file__).parents[2] / "micro.yaml"
HANG_SECONDS = 3600
SAVED = 2.0**-8
"""Spacing of bfloat16, relative: a weight of a saved model may round to the other side; a loss is held to one such step."""
FORMATS = ("int4-g64", "nf4-b64", "int4-g64-dither", "hqq4-g64-opt", "dynamic:int8-row", "gptq:int4-g64")
SETTINGS = ["only_methods=[NPO_KLR]", f"formats={json.dumps(FORMATS)}"]
MIXED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from elsewhere import elsewhere

def refused(compute, error):
    try:
        compute()
    except error:
        return True
    return False

with elsewhere() as device:
    there, here = torch.ones(3, device=device), torch.ones(3)
    assert there.device == device and here.device.type == "cpu"
    assert (there + there).device == device and torch.equal((there * 2).cpu(), here * 2)
    assert refused(lambda: there + here, RuntimeError)
    assert refused(lambda: torch.bucketize(there, here), RuntimeError)
    assert refused(there.numpy, TypeError)
    other = torch.ones(3, device="elsewhere:1")
    assert (other * 2).device == other.device == there.to(other.device).device != device
    assert refused(lambda: there + other, RuntimeError)
    assert float(there.sum()) == 3.0
"""


def call(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr[-6000:]


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    call("-P", "-c", MIXED, str(SCRIPT.parent))


AUDITED = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from elsewhere import elsewhere
from unforgotten.experiments.legs import loaded_pair
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.legs.output import output_leg

root = Path(sys.argv[2])
pair = root / "models/target", root / "models/unlearned"
formats = ["int4-g64", "gguf:Q4_K_M"]
with elsewhere() as device:
    loaded_pair.place_named = lambda name: device
    legs = [
        output_leg(*pair, formats, root / "corpus/privleak/forget.json", device="cuda"),
        behaviour_leg(*pair, formats, root / "corpus", retrained=root / "models/retrained", items=2, device="cuda"),
    ]
Path(sys.argv[3]).write_text(json.dumps(legs))
"""


SPREAD = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from accelerate import dispatch_model
from elsewhere import elsewhere
from unforgotten.experiments.legs import behaviour, loaded_pair, output

root = Path(sys.argv[2])
pair = root / "models/target", root / "models/unlearned"
places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "lm_head": 0, "model.layers": 1, "model.norm": 1}
whole = loaded_pair.load_model

def spread(folder, *, device_map=None, **named):
    model = whole(folder, **named)
    return model if device_map is None else dispatch_model(model, device_map)

for leg in (output, behaviour):  # autograd knows one such device alone
    leg.functional_leg = lambda *given: None
with elsewhere():
    loaded_pair.place_named = lambda name: {key: f"elsewhere:{number}" for key, number in places.items()}
    loaded_pair.load_model = spread
    legs = [
        output.output_leg(*pair, ["int4-g64"], root / "corpus/privleak/forget.json", device="balanced"),
        behaviour.behaviour_leg(
            *pair, ["int4-g64"], root / "corpus", items=2, decompose=False, device="balanced", dtype="bfloat16"
        ),
    ]
Path(sys.argv[3]).write_text(json.dumps(legs))
"""


def test_the_legs_of_an_audit_go_over_two_devices(micro_pair: Path, tmp_path: Path) -> None:
    """Each weight goes where the model's own is, and nothing meets a tensor of the other device."""
    from unforgotten.experiments.legs.behaviour import behaviour_leg
    from unforgotten.experiments.legs.output import output_leg

    call("-P", "-c", SPREAD, str(SCRIPT.parent), str(micro_pair), str(tmp_path / "legs.json"))
    output, behaviour = json.loads((tmp_path / "legs.json").read_text())
    for leg, dtype in ((output, "float32"), (behaviour, "bfloat16")):
        assert leg["ran"]["devices"] == ["elsewhere:0", "elsewhere:1"]
        assert leg["ran"]["dtype"] == dtype
    pair = micro_pair / "models/target", micro_pair / "models/unlearned"
    here = output_leg(*pair, ["int4-g64"], micro_pair / "corpus/privleak/forget.json")
    for name, loss in here["formats"][0]["losses"].items():
        assert output["formats"][0]["losses"][name]["value"] == pytest.approx(loss["value"], rel=SAVED)
    narrow = behaviour_leg(*pair, ["int4-g64"], micro_pair / "corpus", items=2, decompose=False, dtype="bfloat16")
    assert behaviour["ran"]["rounded"] == json.loads(json.dumps(narrow))["ran"]["rounded"]
    for name in ("target", "unlearned"):
        expected = narrow["metrics"][name]["forget_loss"]["value"]
        assert behaviour["metrics"][name]["forget_loss"]["value"] == pytest.approx(expected, rel=SAVED)


@pytest.mark.nightly
def test_the_legs_of_an_audit_go_elsewhere(micro_pair: Path, tmp_path: Path) -> None:
    from unforgotten.experiments.legs.behaviour import behaviour_leg
    from unforgotten.experiments.legs.output import output_leg

    call("-P", "-c", AUDITED, str(SCRIPT.parent), str(micro_pair), str(tmp_path / "legs.json"))
    there = json.loads((tmp_path / "legs.json").read_text())
    pair = micro_pair / "models/target", micro_pair / "models/unlearned"
    formats = ["int4-g64", "gguf:Q4_K_M"]
    output = output_leg(*pair, formats, micro_pair / "corpus/privleak/forget.json")
    retrained = micro_pair / "models/retrained"
    behaviour = behaviour_leg(*pair, formats, micro_pair / "corpus", retrained=retrained, items=2)
    for a, b in ((there[0], output), (there[1], behaviour)):
        measured = b.get("functional")
        assert measured is not None
        for one, other in zip(a["functional"]["formats"], measured["formats"], strict=True):
            assert one["functional_gain"] == pytest.approx(other["functional_gain"], rel=SAVED)
            assert one["gain"] == pytest.approx(other["gain"], rel=SAVED)
    lost = [leg["losses"]["unlearned"]["value"] for leg in (there[0], output)]
    assert lost[0] == pytest.approx(lost[1], rel=SAVED)
    lost = [leg["metrics"]["unlearned"]["forget_loss"]["value"] for leg in (there[1], behaviour)]
    assert lost[0] == pytest.approx(lost[1], rel=SAVED)


@pytest.mark.nightly
@pytest.mark.parametrize("storage", ["fp32", "bf16"])
def test_a_whole_run_goes_elsewhere(tmp_path: Path, storage: str) -> None:
    """Its kernels are the CPU's, taken one by one, so its numbers differ by the rounding of the models that are saved in bfloat16."""
    from unforgotten.experiments.load_config import load_config
    from unforgotten.experiments.run import run
    from unforgotten.records.rows import read_run

    settings = [*SETTINGS, f"storages=[{storage}]"]
    call(str(SCRIPT), str(tmp_path / "there"), *settings)
    run(load_config(str(MICRO), overrides=settings), tmp_path / "here", resume=False)
    there, here = (read_run(tmp_path / name) for name in ("there", "here"))
    assert [row.key for row in there.rows] == [row.key for row in here.rows]
    assert {row.device for row in there.rows} == {"elsewhere:0"}
    losses = [(a.value, b.value) for a, b in zip(there.rows, here.rows, strict=True) if a.metric == "forget_loss"]
    assert len(losses) == 3 * len(FORMATS) + 4
    assert all(a == pytest.approx(b, rel=SAVED) for a, b in losses)
