"""What is silently wrong in the libraries: each trap as it is, and that our adapters and paths do not fall into it.

A trap that a new release mends fails its test, which then is taken out with the way around it.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unforgotten.theory.formats.double_quant import double_quantize
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.formats.reference import quantize, round_trip
from unforgotten.verification.chance import rng_for
from unforgotten.verification.conformance.libggml import load_ggml, quantize_chunk
from unforgotten.verification.contracts.libraries import ADAPTERS, bnb_int8, bnb_nf4, hqq_plain

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch", reason="the libraries run on torch")

Array = NDArray[Any]


def needs(module: str) -> Any:
    """The module, or a skip with its name."""
    return pytest.importorskip(module, reason=f"the trap is in {module}")


def normal(shape: tuple[int, ...], *parameters: object) -> Array:
    return rng_for("traps", shape, *parameters).normal(0, 0.02, shape).astype(np.float32)


def relative(values: Array, w: Array) -> float:
    """|values - w| / |w|, in float64."""
    return float(np.linalg.norm(values.astype(float) - w) / np.linalg.norm(w))


avx512 = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the kernel is AVX-512's")


@avx512
@pytest.mark.parametrize(("columns", "size"), [(96, 64), (576, 128), (16, 32), (144, 64)])
def test_bitsandbytes__dequantizes_with_the_wrong_absmax_where_rows_are_no_whole_blocks(
    columns: int, size: int
) -> None:
    """Trap 1. Columns that are a multiple of 16, not of the block: the kernel counts blocks by row, the codes do not."""
    functional = needs("bitsandbytes.functional")
    w = normal((8, columns), size) * np.geomspace(1, 100, 8, dtype=np.float32)[:, None]
    packed, state = functional.quantize_4bit(torch.from_numpy(w), blocksize=size, quant_type="nf4")
    plain = functional.dequantize_4bit(packed, state).numpy()
    expected = round_trip(w, format_named(f"nf4-b{size}"))
    assert relative(plain, w) > 1.5 * relative(expected, w)
    assert np.array_equal(bnb_nf4(size).quantize(w), expected)
    if w.size % size == 0:
        from unforgotten.experiments.quantizers.bitsandbytes import bitsandbytes_values

        ours = bitsandbytes_values(torch.from_numpy(w), f"nf4-b{size}").numpy()
        assert np.array_equal(ours, expected)


@avx512
@pytest.mark.parametrize(("columns", "size"), [(128, 64), (104, 64), (96, 2048)])
def test_bitsandbytes__dequantizes_right_elsewhere(columns: int, size: int) -> None:
    """Trap 1, controls: whole blocks; columns that are no multiple of 16; blocks that fall back to torch."""
    functional = needs("bitsandbytes.functional")
    torch.compiler.set_stance("force_eager")  # torch would compile the fallback
    try:
        w = normal((16, columns), size)
        quantized = functional.quantize_4bit(torch.from_numpy(w), blocksize=size, quant_type="nf4")
        values = functional.dequantize_4bit(*quantized).numpy()
    finally:
        torch.compiler.set_stance("default")
    assert np.array_equal(values, round_trip(w, format_named(f"nf4-b{size}")))


def linear4bit(w: Array, *, nested: bool) -> Any:
    """A layer of bitsandbytes on the CPU; skips where it does not repack."""
    functional, nn = needs("bitsandbytes.functional"), needs("bitsandbytes.nn")
    if not functional.has_avx512bf16():
        pytest.skip("weights are repacked for AVX512-BF16 only")
    settings: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": nested}
    layer = nn.Linear4bit(w.shape[1], w.shape[0], bias=False, **settings)
    layer.weight = nn.Params4bit(torch.from_numpy(w.copy()), requires_grad=False, **settings)
    return layer.to("cpu")


def dequantized(layer: Any) -> Array:
    functional = needs("bitsandbytes.functional")
    state = layer.weight.quant_state
    return functional.dequantize_4bit(layer.weight.data, state).float().numpy()


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes__repacks_a_weight_in_its_first_forward_pass(nested: bool) -> None:
    """Trap 2. In eval mode, in place: what is dequantized after it is garbage, before it exact.

    No path of ours runs such a layer: weights are quantized and dequantized as tensors, and models compute with those.
    """
    w = normal((128, 256))
    layer = linear4bit(w, nested=nested)
    fmt = format_named("nf4-b64")
    if nested:
        offset = np.float32(layer.weight.quant_state.offset.item())
        expected = double_quantize(w, fmt, offset=offset).values
    else:
        expected = round_trip(w, fmt)
    assert np.array_equal(dequantized(layer), expected)
    x = torch.from_numpy(normal((4, 256), "x"))
    layer.train()
    layer(x.requires_grad_())
    assert np.array_equal(dequantized(layer), expected)
    layer.eval()
    with torch.no_grad():
        layer(x.detach())
    assert relative(dequantized(layer), w) > 1
    assert np.array_equal(bnb_nf4().quantize(w), round_trip(w, fmt))


def test_bitsandbytes__saves_another_weight_after_a_forward_pass() -> None:
    """Trap 2. The inverse of the repacking forgets a transpose unless absmax is nested: what is saved is another weight."""
    w = normal((128, 256))
    nn = needs("bitsandbytes.nn")
    errors = {}
    for nested in (False, True):
        layer = linear4bit(w, nested=nested).eval()
        with torch.no_grad():
            layer(torch.from_numpy(normal((4, 256), "x")))
        stored = {k.removeprefix("weight").lstrip("."): v for k, v in layer.state_dict().items()}
        data = stored.pop("")
        saved = nn.Params4bit.from_prequantized(
            data=data, quantized_stats={f"weight.{k}": v for k, v in stored.items()}, device="cpu"
        )
        holder = nn.Linear4bit(256, 128, bias=False)
        holder.weight = saved
        errors[nested] = relative(dequantized(holder), round_trip(w, format_named("nf4-b64")))
    assert errors[False] > 0.05
    assert errors[True] < 0.05


def test_bitsandbytes__has_codes_of_8_bits_that_are_not_the_nearest() -> None:
    """Trap 3. On the CPU, by a table of 65536 bins; CUDA searches. Ours has the bits of the CPU: test_double_quant."""
    functional = needs("bitsandbytes.functional")
    x = torch.from_numpy(normal((1000, 256)))
    codes, state = functional.quantize_blockwise(x, blocksize=256)
    unit = (x / x.abs().amax(1, keepdim=True)).double()
    middles = (state.code[:-1].double() + state.code[1:].double()) / 2
    wrong = (torch.bucketize(unit, middles).to(torch.uint8) != codes).sum().item()
    assert 0 < wrong < 0.01 * x.numel()


def test_bitsandbytes__rounds_weights_of_an_int8_layer_to_float16_first() -> None:
    """Trap 4. So a float32 model has other codes through a layer (and transformers) than by the function we call."""
    functional, nn = needs("bitsandbytes.functional"), needs("bitsandbytes.nn")
    w = normal((64, 256), "int8")
    layer = nn.Linear8bitLt(256, 64, bias=False, has_fp16_weights=False)
    layer.weight = nn.Int8Params(torch.from_numpy(w.copy()), has_fp16_weights=False, requires_grad=False)
    of_layer = layer.to("cpu").weight.data.numpy()
    assert np.array_equal(of_layer, functional.int8_vectorwise_quant(torch.from_numpy(w).half())[0])
    codes = np.asarray(format_named("llmint8-row").labels)[quantize(w, format_named("llmint8-row"))[0]]
    assert not np.array_equal(of_layer, codes)
    adapter = bnb_int8()
    assert np.array_equal(adapter.quantize(w), round_trip(w, format_named("llmint8-row")))


def test_ggml__leaves_the_end_of_rows_unwritten_that_are_no_whole_blocks() -> None:
    """Trap 5. 7 rows of 576 weights are 15 blocks of 256 and 192 weights, which no byte holds; nothing is said."""
    gguf, library = needs("gguf"), load_ggml()
    kind = gguf.GGMLQuantizationType.Q4_K
    w, (block, size) = normal((7, 576)), gguf.GGML_QUANT_SIZES[kind]
    assert w.size % block == 192
    out = np.full((w.size // block + 2, size), 0xA5, np.uint8)
    whole = w.size // block
    assert quantize_chunk(library, w, kind.value, out) > whole * size, "it even counts them"
    assert (out[whole:] == 0xA5).all()
    straddling = gguf.quants.dequantize(out[:whole], kind).ravel()  # over the ends of rows
    assert relative(straddling, w.ravel()[: straddling.size]) < 0.2


@pytest.mark.parametrize("name", ["q4_k", "q5_k", "q6_k", "q4_0", "q8_0"])
def test_rows_of_no_whole_blocks_are_refused(name: str) -> None:
    """Trap 5, our side: one line, in the reference and in the torch path."""
    from unforgotten.experiments.quantizers.own import own_values

    fmt, w = format_named(name), normal((7, 576 + 8))
    message = rf"^rows must be whole blocks of {fmt.block_size} in {name}, got columns=584$"
    with pytest.raises(ValueError, match=message):
        quantize(w, fmt)
    with pytest.raises(ValueError, match=message):
        own_values(torch.from_numpy(w), name)


def test_torchao__has_another_nf4() -> None:
    """Trap 6. Its table has 4 digits and its absmax is nested: not the NF4 of bitsandbytes, with which it shares the name."""
    nf4 = needs("torchao.quantization").to_nf4(torch.from_numpy(normal((64, 256))))
    fmt, w = format_named("nf4-b64"), normal((64, 256))
    table = np.abs(nf4.nf4.numpy() - np.asarray(fmt.levels, np.float32))
    assert 0 < table.max() <= 5.1e-5
    values = nf4.get_original_weight().numpy()
    for ours in (round_trip(w, fmt), double_quantize(w, fmt).values):
        assert 0 < relative(values, ours) < 0.02
    assert not [n for n in ADAPTERS if n.startswith("torchao") and "nf4" in n]


def gptqmodel() -> Any:
    """The library, imported as our tests do."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    return needs("gptqmodel")


def test_gptqmodel__refuses_to_start_on_two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 7. One worker for two processors, of which a model's loader wants two. GPTQMODEL_CPU_WORKERS=2 mends it."""
    library = gptqmodel()
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("GPTQMODEL_CPU_WORKERS")
    with pytest.raises(ValueError, match=r"'model_loader:cpu' requests 2 workers"):
        library._build_device_thread_pool()
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")
    library._build_device_thread_pool().shutdown()


def packed_layer(kind: str) -> tuple[Any, Array]:
    """A 4-bit layer of gptqmodel that holds known values, and those."""
    gptqmodel()
    module, name = kind.rsplit(".", 1)
    layer_type = getattr(importlib.import_module(f"gptqmodel.nn_modules.qlinear.{module}"), name)
    rng, group = rng_for("packed layer"), np.arange(128) // 32
    codes = rng.integers(0, 16, (32, 128)).astype(np.float32)
    scales = 2.0 ** rng.integers(-3, 3, (32, 4)).astype(np.float32)
    w = scales[:, group] * (codes - 8)
    source = torch.nn.Linear(128, 32, bias=False)
    source.weight.data = torch.from_numpy(w)
    layer = layer_type(bits=4, group_size=32, sym=True, desc_act=False, in_features=128, out_features=32, bias=False)
    parts = (scales, np.full_like(scales, 8), group.astype(np.int32))
    layer.pack(source, *(torch.from_numpy(a) for a in parts))
    return layer, w


def test_gptqmodel__cannot_dequantize_what_its_aten_layer_has_run() -> None:
    """Trap 8. After a forward pass its weights are in the layout of a kernel. The audit reads files, never layers."""
    layer, w = packed_layer("torch_aten_kernel.TorchAtenLinear")
    assert np.array_equal(layer.dequantize_weight().float().numpy().T, w)
    layer.post_init()
    layer.eval()
    with torch.no_grad():
        layer(torch.from_numpy(normal((2, 128))).bfloat16())
    with pytest.raises(NotImplementedError, match="rshift"):
        layer.dequantize_weight()
    layer, w = packed_layer("torch.TorchLinear")
    assert np.array_equal(layer.eval().dequantize_weight().float().numpy().T, w)


def test_gptqmodel__rounds_to_other_groups_grids_when_static_and_group_aware() -> None:
    """Found here, in 7.6.0: columns are moved, static grids are not, so a group is rounded to a grid fitted to another.

    Values are what the file says, only worse: with one group 64 times the others, the others are lost. Our rule takes
    the grids along.
    """
    from dataclasses import replace

    from unforgotten.theory.formats.gptq import GPTQ_RULES, gptq

    gptqmodel()
    quantization = needs("gptqmodel.quantization")
    tasks = needs("gptqmodel.quantization.gptq")
    w, x = normal((8, 128)), normal((512, 128), "x")
    w[:, :32] *= 64
    x[:, 96:] *= 8  # the group that is moved to the front, where the large one stood
    config = quantization.QuantizeConfig(
        bits=4,
        group_size=32,
        act_group_aware=True,
        desc_act=False,
        static_groups=True,
        fallback=None,
        offload_to_disk=False,
    )
    layer = torch.nn.Linear(128, 8, bias=False)
    layer.weight.data = torch.from_numpy(w.copy())
    task = tasks.GPTQ(layer, config)
    task.quantizer.configure(perchannel=True)
    task.add_batch(torch.from_numpy(x)[None], None)
    h = task.finalize_hessian().clone().numpy()
    theirs = task.quantize()[0].numpy()
    rule = replace(GPTQ_RULES["gptqmodel"], static=True, group_size=32)
    ours = gptq(w, h, rule).values
    assert relative(ours[:, 96:], w[:, 96:]) < 0.3
    assert relative(theirs[:, 96:], w[:, 96:]) > 0.7


def test_hqq__packs_a_single_group_into_nothing() -> None:
    """Found here: two codes share a byte, of two groups; of one group no code is kept. The adapter packs pairs alone."""
    library = needs("hqq.core.quantize").Quantizer
    w = normal((1, 32))
    packed, meta = library.quantize(
        torch.from_numpy(w.copy()), nbits=4, group_size=32, optimize=False, axis=1, device="cpu"
    )
    assert packed.numel() == 0
    with pytest.raises(RuntimeError, match="invalid for input of size 0"):
        library.dequantize(packed, {**meta, "compute_dtype": torch.float32})
    assert np.array_equal(hqq_plain().quantize(w), round_trip(w, format_named("hqq4-g32")))


def test_transformers__has_the_int8_codes_of_float16_weights(tmp_path: Path) -> None:
    """Trap 4, end to end: a float32 checkpoint loaded in 8 bits has the codes of its float16 rounding."""
    needs("accelerate")
    functional = needs("bitsandbytes.functional")
    transformers = needs("transformers")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2)
    )
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)
    )
    name = "model.layers.0.mlp.up_proj.weight"
    w, stored = model.get_parameter(name).detach(), loaded.get_parameter(name).detach()
    assert torch.equal(stored, functional.int8_vectorwise_quant(w.half())[0])
    assert not torch.equal(stored, functional.int8_vectorwise_quant(w.clone())[0])
