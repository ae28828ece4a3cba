"""Public reports about zero points of GPTQ and lists of skipped layers, each as a file of a few KB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from unforgotten.audit import CheckpointError, audit_pair, open_checkpoint
from unforgotten.audit.codes.compare import compare_codes
from unforgotten.audit.codes.layouts import LAYOUTS
from unforgotten.audit.sources.quantization import read_scheme

Tensors = dict[str, NDArray[Any]]
NAME, OTHER = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
ZEROS = (0, 6, 7, 8, 0, 3, 1, 12, 0, 0, 3, 5, 5, 8, 5, 9)
OUTS, INS = 16, 16


def words(codes: NDArray[Any], bits: int) -> NDArray[np.uint32]:
    """Rows of codes as 32-bit words, lowest bits first, by Python's integers."""
    per_word = 32 // bits
    rows = [[int(c) for c in row] for row in codes]
    return np.array(
        [
            [sum(c << (bits * i) for i, c in enumerate(row[k : k + per_word])) for k in range(0, len(row), per_word)]
            for row in rows
        ],
        np.uint32,
    )


def layer(zeros: NDArray[Any], *, v1: bool, bits: int = 4, seed: int = 0, name: str = NAME) -> Tensors:
    """One layer of one group; v1 is the packed words less one in every code, as whole words modulo 2^32."""
    codes = np.random.default_rng(seed).integers(0, 2**bits, (INS, OUTS))
    packed = words(zeros.reshape(1, -1), bits)
    if v1:
        ones = sum(1 << at for at in range(0, 32, bits))
        packed = np.array([[(int(word) - ones) % 2**32 for word in packed[0]]], np.uint32)
    return {
        f"{name}.qweight": words(codes.T, bits).T.copy().view(np.int32),
        f"{name}.qzeros": packed.view(np.int32),
        f"{name}.scales": np.full((1, OUTS), 0.5, np.float16),
    }


def save(folder: Path, tensors: Tensors, form: str = "gptq", bits: int = 4) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors | {"model.norm.weight": np.ones(16, np.float32)}, folder / "model.safetensors")
    config = {"quant_method": "gptq", "bits": bits, "group_size": -1, "checkpoint_format": form}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def values(folder: Path) -> NDArray[Any]:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = read_scheme(folder, config)
    opened = LAYOUTS[scheme.layout].open(scheme, open_checkpoint(folder), NAME)
    return opened.decode(0, opened.units).values


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_both_formats_of_asymmetric_zeros_decode_alike(bits: int, tmp_path: Path) -> None:
    """AutoGPTQ PR#640, GPTQModel PR#2351: v1 borrows across the codes of a word, so a zero of 0 moves its neighbour."""
    zeros = np.array(ZEROS) % 2**bits
    one = save(tmp_path / "v1", layer(zeros, v1=True, bits=bits), "gptq", bits)
    two = save(tmp_path / "v2", layer(zeros, v1=False, bits=bits), "gptq_v2", bits)
    codes = np.random.default_rng(0).integers(0, 2**bits, (INS, OUTS))
    assert np.array_equal(values(two), 0.5 * (codes - zeros))
    assert np.array_equal(values(one), values(two))


def test_an_equal_pair_of_both_formats_is_one_model_and_the_convention_is_said(tmp_path: Path) -> None:
    """GPTQModel PR#2351: files of both formats with equal weights used to be refused."""
    one = save(tmp_path / "v1", layer(np.array(ZEROS), v1=True))
    two = save(tmp_path / "v2", layer(np.array(ZEROS), v1=False), "gptq_v2")
    result = audit_pair(one, two, out=tmp_path / "out")
    (row,) = result["formats"]
    assert (row["code_flips"], row["value_changes"]) == (0, 0)
    first, second = result["notes"]
    assert first.startswith("target: zero points are read by the convention of checkpoint_format gptq (v1), 0x11111111")
    assert "reads 7 of them otherwise" in first
    assert "gptq_v2 (v2), as they are stored" in second
    assert "0x11111111" in (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_zeros_that_differ_by_one_everywhere_are_a_wrong_label(turned: bool, seed: int, tmp_path: Path) -> None:
    """vllm PR#38966: zeros 7 in one file and 8 in the other, both labelled gptq, were a change of every value."""
    t = save(tmp_path / "t", layer(np.full(OUTS, 7), v1=False))
    u = save(tmp_path / "u", layer(np.full(OUTS, 8), v1=False, seed=seed))
    words = "zero points differ by one everywhere: one file follows the v2 convention"
    with pytest.raises(CheckpointError, match=words) as caught:
        audit_pair(*((u, t) if turned else (t, u)))
    assert str(caught.value).isprintable()
    assert "gptq and gptq" in str(caught.value)


@pytest.mark.parametrize("turned", [False, True])
def test_a_wrong_label_is_seen_through_borrows(turned: bool, tmp_path: Path) -> None:
    """A file of v2 labelled gptq beside one of v1: words differ by 0x11111111, single codes by more where one borrows."""
    t = save(tmp_path / "t", layer(np.array(ZEROS), v1=True))
    u = save(tmp_path / "u", layer((np.array(ZEROS) + 6) % 16, v1=False))
    w = save(tmp_path / "w", layer(np.array(ZEROS), v1=False))
    audit_pair(t, u)
    with pytest.raises(CheckpointError, match="zero points differ by one everywhere"):
        audit_pair(*((w, t) if turned else (t, w)))


def test_zeros_that_differ_here_and_there_are_compared(tmp_path: Path) -> None:
    moved = np.array(ZEROS)
    moved[1] += 1
    t = save(tmp_path / "t", layer(np.array(ZEROS), v1=True))
    u = save(tmp_path / "u", layer(moved, v1=True))
    (row,) = audit_pair(t, u)["formats"]
    assert (row["code_flips"], row["value_changes"]) == (0, INS)


@pytest.mark.parametrize("turned", [False, True])
def test_lists_of_skipped_layers_may_differ(turned: bool, tmp_path: Path) -> None:
    """A layer that one recipe skips stands in 16 bit there: it counts as differing and is named."""
    both = layer(np.array(ZEROS), v1=True)
    more = layer(np.array(ZEROS), v1=True, name=OTHER)
    t = save(tmp_path / "t", both | more)
    u = save(tmp_path / "u", both | {f"{OTHER}.weight": np.ones((OUTS, INS), np.float16)})
    result = audit_pair(*((u, t) if turned else (t, u)))
    assert result["coverage"]["tensors"] == 1
    assert result["coverage"]["kept_changed"] == [OTHER]
    assert f"quantized in one checkpoint alone and count as differing: '{OTHER}'" in result["notes"][-1]


def test_a_layer_that_is_missing_on_one_side_is_refused(tmp_path: Path) -> None:
    both = layer(np.array(ZEROS), v1=True)
    t = open_checkpoint(save(tmp_path / "t", both | layer(np.array(ZEROS), v1=True, name=OTHER)))
    u = open_checkpoint(save(tmp_path / "u", both))
    with pytest.raises(CheckpointError, match=rf"'{OTHER}' must be quantized in both checkpoints, or be there as"):
        compare_codes(t, u)
