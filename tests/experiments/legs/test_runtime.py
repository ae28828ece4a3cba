"""Quantized checkpoints that their own library runs, beside plain models with their decoded values."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest

torch = pytest.importorskip("torch", reason="the legs need unforgotten[experiments]")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="the runtime needs unforgotten[quantizers]")

from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from unforgotten.audit.deployed.stored import open_deployed
from unforgotten.audit.options import Asked, read_options
from unforgotten.audit.outputs.answer import answer
from unforgotten.audit.outputs.html import render
from unforgotten.audit.outputs.json_schema import audit_schema
from unforgotten.audit.run import audit_pair
from unforgotten.audit.sources.open import open_pair
from unforgotten.audit.verdict.legs import OutputLeg, Ran
from unforgotten.experiments.data.texts import read_texts
from unforgotten.experiments.legs.behaviour import behaviour_leg
from unforgotten.experiments.legs.likelihood import batches, measure
from unforgotten.experiments.legs.loaded_pair import Pair, open_model_pair
from unforgotten.experiments.legs.output import encode_texts, output_leg
from unforgotten.experiments.legs.real_runtime import check_runtime, load_real
from unforgotten.experiments.models.batches import Batch
from unforgotten.experiments.models.scoring import next_logits
from unforgotten.experiments.models.states import LazyState

Folders = tuple[Path, Path]
FORMAT = "nf4-b64"
BETWEEN = 32
"""Roundings of a number between two products of matrices at most: norm, rotation, softmax, SiLU, residual; beside the sums of these."""


def unit_roundoff() -> float:
    """Return that of the library's products: on processors with AVX512-BF16 it packs weights and inputs into bfloat16."""
    has = getattr(bitsandbytes.functional, "has_avx512bf16", None)
    return 2.0**-8 if has is not None and has() else 2.0**-24


@pytest.fixture(scope="module")
def pair(micro_pair: Path) -> Folders:
    return micro_pair / "models/target", micro_pair / "models/unlearned"


@pytest.fixture(scope="module")
def texts(micro_pair: Path) -> Path:
    return micro_pair / "corpus/privleak/forget.json"


@pytest.fixture(scope="module")
def files(pair: Folders, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The pair as transformers and bitsandbytes quantize and save it."""
    root = tmp_path_factory.mktemp("deployed")
    for folder in pair:
        settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        made = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map={"": "cpu"})
        made.save_pretrained(root / folder.name)
    return str(root / pair[0].name), str(root / pair[1].name)


@pytest.fixture(scope="module")
def leg(pair: Folders, texts: Path, files: tuple[str, str]) -> OutputLeg:
    return output_leg(*pair, [FORMAT], texts, real=files)


@contextmanager
def seen(model: Any) -> Iterator[list[tuple[Any, Any, Any]]]:
    """Collect inputs, weight and the gradient of the outputs of each linear layer."""
    found: list[tuple[Any, Any, Any]] = []
    inputs: dict[Any, Any] = {}

    def before(module: Any, given: tuple[Any, ...]) -> None:
        inputs[module] = given[0].detach()

    def after(module: Any, _: Any, gradients: tuple[Any, ...]) -> None:
        found.append((inputs[module], module.weight.detach(), gradients[0].detach()))

    handles = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            handles += [module.register_forward_pre_hook(before), module.register_full_backward_hook(after)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def rounding_of_loss(model: Any, batch: Batch, unit: float) -> float:
    """Return what roundings may move the mean loss of the texts by, to first order.

    A product of n terms, summed in any order, is an exact one of terms that are off by n roundings each; so are the inputs, by
    BETWEEN. Hence |dL| <= unit sum over layers of (n + BETWEEN) |g| · |W| |x|, with g the gradient of a layer's outputs.
    """
    total = 0.0
    for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        ids = row[: int(mask.sum())][None]
        with seen(model) as layers, torch.enable_grad():
            logits = next_logits(model, Batch(ids, torch.ones_like(ids), (0,)))
            torch.nn.functional.cross_entropy(logits[0, :-1].double(), ids[0, 1:]).backward()
        for x, w, g in layers:
            terms = (g.double().abs() * (x.double().abs() @ w.double().abs().T)).sum()
            total += unit * (w.shape[1] + BETWEEN) * float(terms)
        model.zero_grad()
    return total / len(batch.input_ids)


def decoded(loaded: Pair, pair: Folders, files: tuple[str, str]) -> list[LazyState]:
    """Return the states of the quantized models, decoded by the audit's own reader."""
    opened = open_deployed(files, open_pair(*pair), loaded.shell.names)

    def state_of(number: int) -> LazyState:
        own, base = opened[number].stored, (loaded.target, loaded.unlearned)[number]
        return LazyState(base, lambda name: torch.from_numpy(own[name].values()) if name in own else base[name])

    return [state_of(0), state_of(1)]


def test_losses_are_those_of_the_decoded_values_to_rounding(
    pair: Folders, texts: Path, files: tuple[str, str], leg: OutputLeg
) -> None:
    loaded = open_model_pair(*pair)
    encoded, _ = encode_texts(read_texts(texts), loaded, "texts")
    model = loaded.shell.model
    (batch,) = batches(encoded, model.config.vocab_size, model.config.pad_token_id or 0)
    simulated, real = leg["formats"]
    assert real["format"] == "deployed"
    for name, state, plain in zip(
        ("Q(target)", "Q(unlearned)"), decoded(loaded, pair, files), (loaded.target, loaded.unlearned), strict=True
    ):
        loaded.shell.with_state(state)
        items, _ = measure({"decoded": model}, (), [batch])
        loss = sum(items["decoded"]["loss"]) / len(encoded)
        slack = 2 * rounding_of_loss(model, batch, unit_roundoff())  # of both paths
        assert abs(real["losses"][name]["value"] - loss) <= slack
        assert abs(simulated["losses"][name]["value"] - loss) <= slack  # our nf4 is bitsandbytes' bit for bit
        loaded.shell.with_state(plain)
        other = sum(measure({"plain": model}, (), [batch])[0]["plain"]["loss"]) / len(encoded)
        assert unit_roundoff() > 2.0**-24 or abs(real["losses"][name]["value"] - other) > slack  # the test can fail


def test_the_report_says_what_ran_each_row(pair: Folders, texts: Path, files: tuple[str, str], leg: OutputLeg) -> None:
    name = f"transformers {version('transformers')} with bitsandbytes {version('bitsandbytes')}"
    simulated, real = leg["formats"]
    assert "ran" not in simulated
    assert real.get("ran") == Ran(dtype="float32", devices=["cpu"], runtime=name, rounded=[])
    assert leg.get("ran", {}).get("runtime") == "simulated"
    assert real["effects"] == []
    result = audit_pair(*pair, [FORMAT], output=lambda: leg, deployed=files)
    jsonschema.validate(json.loads(json.dumps(result)), audit_schema())
    shown = answer(result)
    told = (
        f"The deployed models ran by {name} on cpu, what is not quantized of them in float32; all others are simulated"
    )
    assert any(note.startswith(told) for note in shown.notes)
    assert told in render(result, [])
    row = shown.rows[-1]
    assert row.format.startswith("deployed (bitsandbytes:nf4 ")
    assert [trail.metric for trail in row.trails] == ["accuracy", "probability"]
    assert "–" not in {trail.quantized for trail in row.trails}
    without = answer(audit_pair(*pair, [FORMAT], deployed=files))
    assert not any("deployed models ran" in note for note in without.notes)


def test_behaviour_is_measured_by_the_runtime_too(pair: Folders, micro_pair: Path, files: tuple[str, str]) -> None:
    steps: list[tuple[int, int, str]] = []

    def step(done: int, total: int, text: str = "") -> None:
        steps.append((done, total, text))

    done = behaviour_leg(*pair, [FORMAT], micro_pair / "corpus", items=3, decompose=False, real=files, step=step)
    simulated, real = done["formats"]
    assert real["format"] == "deployed"
    assert real.get("ran", {}).get("runtime", "").startswith("transformers ")
    assert "ran" not in simulated
    assert real["metrics"].keys() == simulated["metrics"].keys()
    assert {row["metric"] for row in real["recoveries"]} == {"M1", "M2", "forget_loss"}
    assert all("deployed" in leak["formats"] for leak in done["leaks"])
    assert [name for *_, name in steps if "deployed" in name] == ["Q(target) deployed", "Q(unlearned) deployed"]
    assert steps[-1][0] == steps[-1][1]


def test_a_checkpoint_that_lacks_a_weight_is_refused(pair: Folders, files: tuple[str, str], tmp_path: Path) -> None:
    """transformers would make it up, and say so in a warning."""
    shutil.copytree(files[0], tmp_path / "q")
    weights = load_file(tmp_path / "q/model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "q/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"q: must hold every weight of the model, got none for model\.norm\.weight$"):
        load_real(str(tmp_path / "q"), open_model_pair(*pair).shell.model)


def test_another_vocabulary_is_refused(pair: Folders, files: tuple[str, str]) -> None:
    like = open_model_pair(*pair).shell.model
    like.config.vocab_size = 7
    with pytest.raises(ValueError, match=r"target: vocab_size must be the target's, 7, got 400$"):
        load_real(files[0], like)


def test_what_cannot_be_run_is_refused_by_name(
    pair: Folders, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    rule = r"config\.json: quant_method must be one of compressed-tensors, bitsandbytes, awq, gptq, got 'fp8'$"
    for source, said in (
        (str(tmp_path), rule),
        (str(pair[0]), r"config\.json: quant_method must be one of .*, got None$"),
        (
            "x-Q4_K_M.gguf",
            r"^x-Q4_K_M\.gguf: must be a GGUF file or a directory that transformers runs for --runtime deployed, got no such file$",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            check_runtime((files[0], source))
    check_runtime(files)
    (tmp_path / "there.gguf").write_bytes(b"GGUF")
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name, *a: None)
        with pytest.raises(ValueError, match=r"^llama_cpp is missing: pip install 'llama-cpp-python'$"):
            check_runtime((str(tmp_path / "there.gguf"),))
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    real = importlib.util.find_spec
    for absent in ("bitsandbytes", "gptqmodel"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a, gone=absent: None if n == gone else real(n, *a))
        source = files[0] if absent == "bitsandbytes" else str(tmp_path)
        with pytest.raises(ValueError, match=rf"^{absent} is missing: pip install '{absent}'$"):
            check_runtime((source, source))


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"runtime": "real"}, "^--runtime must be one of simulated, deployed, got 'real'$"),
        ({"runtime": "deployed"}, "^--runtime deployed needs --deployed, and --texts or --benchmark$"),
        ({"runtime": "deployed", "deployed": ("a", "b")}, "^--runtime deployed needs --deployed, and"),
    ],
)
def test_a_runtime_needs_files_and_texts(asked: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_options(Asked(**asked), "unlearned")


def test_the_command_refuses_before_it_reads_weights(
    pair: Folders, texts: Path, tmp_path: Path, exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--texts", str(texts), "--deployed", "a.gguf", "b.gguf", "--runtime", "deployed"]
    assert exit_code("audit", *map(str, pair), *options, "--out", str(tmp_path / "out")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    rule = "must be a GGUF file or a directory that transformers runs for --runtime deployed"
    assert f"a.gguf: {rule}, got no such file" in err
    assert not (tmp_path / "out").exists()
