"""The gate: a word that is said fails it, one that nothing could say is refused, and the last line says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import AuditResult, audit_pair
from unforgotten.audit.verdict.gate import check_codes, gate, known_words, read_words

ROOT = Path(__file__).parents[3]
Tensors = dict[str, NDArray[Any]]
FORMATS = ["int4-row", "int8-row"]


def start() -> Tensors:
    w = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    w[:, 0] = 7
    return {"layers.0.weight": w}


def swallowed(w: NDArray[Any]) -> NDArray[Any]:
    """Moves only what stays well inside the zero bin of int4-row."""
    return np.where(np.abs(w) < 0.25, w + np.float32(0.06), w)


def honest(w: NDArray[Any]) -> NDArray[Any]:
    return (w + np.random.default_rng(1).normal(0, 0.1, w.shape)).astype(np.float32)


ENDS = {"swallowed": swallowed, "honest": honest}


def save(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "target", start())
    for name, end in ENDS.items():
        save(tmp_path / name, {key: end(w) for key, w in start().items()})
    return tmp_path


def audited(folder: Path, name: str) -> AuditResult:
    return audit_pair(folder / "target", folder / name, FORMATS)


@pytest.mark.parametrize(
    ("name", "words", "code", "says"),
    [
        ("swallowed", "swallowed", 1, "--fail-on swallowed: the weights say swallowed in int4-row"),
        ("swallowed", "partly-swallowed", 1, "partly swallowed"),
        ("swallowed", "no update,passes", 0, "none of --fail-on no update, passes"),
        ("swallowed", "", 0, "no --fail-on was given"),
        ("honest", "swallowed,partly swallowed,no-update,unclear", 0, "the weights say passes"),
        ("honest", "passes", 1, "the weights say passes"),
        ("honest", "undecided", 1, "the verdict is undecided"),
    ],
)
def test_the_words_of_the_weights_can_fail_it(name: str, words: str, code: int, says: str, folder: Path) -> None:
    found = gate(audited(folder, name), read_words(words, ()))
    assert found.code == code
    assert says in found.why


@pytest.mark.parametrize(
    ("words", "measured", "refused"),
    [
        ("undone", (), "'undone'"),
        ("swallowed,survives", (), "'survives'"),
        ("retain-lost", ("texts",), "'retain-lost'"),
        ("maybe", ("texts",), "maybe"),
        ("Undone", ("texts",), "Undone"),
    ],
)
def test_a_word_that_nothing_could_say_is_refused(words: str, measured: tuple[str, ...], refused: str) -> None:
    with pytest.raises(ValueError, match="--fail-on must") as caught:
        read_words(words, measured)
    assert refused in str(caught.value)


def test_every_word_is_taken_where_all_is_measured() -> None:
    words = known_words()
    assert read_words(",".join(words), ("texts", "benchmark")) == words
    assert read_words(",".join(w.replace(" ", "-") for w in words), ("benchmark",)) == words


def test_codes_of_a_quantized_pair_cannot_pass_a_gate_on_gains() -> None:
    with pytest.raises(ValueError, match="quantized already, whose codes show no more, got swallowed"):
        check_codes(("swallowed",))
    check_codes(("swallowed", "undecided"))
    check_codes(())


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the example as a user would, with this environment's command first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(ROOT / "examples/pre-release.sh"), *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PATH": path}
    )


def test_the_example_stops_a_swallowed_pair_and_lets_an_honest_one_pass(folder: Path) -> None:
    stopped, passed = (script("target", name, f"out-{name}", cwd=folder) for name in ("swallowed", "honest"))
    assert stopped.returncode == 1, stopped.stderr
    assert stopped.stdout.splitlines()[-1].startswith("exit 1: --fail-on swallowed")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "\nexit 0: none of --fail-on swallowed" in passed.stdout
    assert passed.stdout.splitlines()[-1].startswith("To release: ")


def test_the_example_stops_a_destroyed_model(micro_pair: Path, tmp_path: Path) -> None:
    """Weights times thirty: the model says nonsense, so that nothing can come back."""
    torch = pytest.importorskip("torch", reason="needs unforgotten[experiments]")
    transformers = pytest.importorskip("transformers")
    target = micro_pair / "models/target"
    model = transformers.AutoModelForCausalLM.from_pretrained(target)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(30.0)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (target / name).exists():
            (tmp_path / "destroyed").mkdir(exist_ok=True)
            (tmp_path / "destroyed" / name).write_bytes((target / name).read_bytes())
    model.save_pretrained(tmp_path / "destroyed")
    done = script(str(target), str(tmp_path / "destroyed"), "out", str(micro_pair / "corpus"), "int8-row", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("exit 1: --fail-on ")
    assert "retain-lost" in last
    assert not any("survives" in line for line in done.stdout.splitlines()[:4])
