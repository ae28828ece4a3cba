"""The products of the bf16 arms: near enough to native ones, seen in forward and backward passes, chosen as asked for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the products need unforgotten[experiments]")

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from unforgotten.experiments.arms import products as bf16_products
from unforgotten.experiments.arms.products import (
    FUSED_ATTENTION,
    PRODUCTS,
    Float32Products,
    native_is_fast,
    products,
    resolve,
)
from unforgotten.experiments.config import BaseConfig
from unforgotten.experiments.models.bases.llama import TINY

aten = torch.ops.aten
U16 = 2.0**-8  # half an ulp of bfloat16 at 1
ULP32 = 2.0**-23  # of float32 at 1: a whole one, for instructions need not round their sums to nearest
TINIEST = 2.0**-126  # below it, instructions may take a number for 0
LENGTH = 300  # of the sums; no multiple of what a kernel takes at once
SHAPES: Mapping[Any, tuple[tuple[int, ...], ...]] = {
    aten.mm.default: ((24, LENGTH), (LENGTH, 17)),
    aten.bmm.default: ((3, 24, LENGTH), (3, LENGTH, 17)),
    aten.addmm.default: ((17,), (24, LENGTH), (LENGTH, 17)),
    aten.baddbmm.default: ((3, 24, 17), (3, 24, LENGTH), (3, LENGTH, 17)),
    aten.mv.default: ((24, LENGTH), (LENGTH,)),
    aten.addmv.default: ((24,), (24, LENGTH), (LENGTH,)),
    aten.dot.default: ((LENGTH,), (LENGTH,)),
    aten.matmul.default: ((3, 24, LENGTH), (LENGTH, 17)),
    aten.linear.default: ((24, LENGTH), (17, LENGTH), (17,)),
}


def drawn(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes]


def in_float32(func: Any, args: Sequence[Any]) -> Tensor:
    with torch.inference_mode(), Float32Products() as mode:  # the mode sees linear and matmul whole
        result: Tensor = func(*args)
    assert mode.computed == 1
    return result


def room(func: Any, args: Sequence[Any], terms: int) -> tuple[Tensor, Tensor]:
    """The product in float64, and how far a sum of `terms` float32 numbers, rounded to bfloat16, may be from it.

    The products of two bfloat16 numbers are exact in float32; each of the additions is off by an ulp of float32 of the
    sum of magnitudes at most; the rounding by half an ulp of bfloat16 of what it rounds.
    """
    exact = func(*(a.double() for a in args))
    magnitude = func(*(a.double().abs() for a in args))
    sums = terms * (ULP32 * magnitude + TINIEST)
    return exact, sums + U16 * (exact.abs() + sums) + TINIEST


@pytest.mark.parametrize("func", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_product_is_a_float32_sum_rounded_once_natively_too(func: Any, seed: int) -> None:
    args = drawn(SHAPES[func], seed)
    exact, off = room(func, args, LENGTH + 1)
    ours, native = in_float32(func, args), func(*args)
    assert ours.dtype == native.dtype == torch.bfloat16
    assert bool(((ours.double() - exact).abs() <= off).all())
    assert bool(((native.double() - exact).abs() <= off).all())
    assert bool(((ours.double() - native.double()).abs() <= 2 * off).all())


def test_every_product_that_is_computed_here_is_compared() -> None:
    assert set(SHAPES) == PRODUCTS


def test_the_room_sees_sums_in_bfloat16() -> None:
    """300 ones add up to 256 in bfloat16, where 257 rounds to 256."""
    ones = [torch.ones(LENGTH, dtype=torch.bfloat16)] * 2
    exact, off = room(aten.dot.default, ones, LENGTH)
    assert abs(256.0 - float(exact)) > 2 * float(off)
    assert abs(float(in_float32(aten.dot.default, ones)) - float(exact)) <= float(off)


def test_products_of_other_dtypes_are_left_alone() -> None:
    a, b = (t.float() for t in drawn(SHAPES[aten.mm.default], 0))
    with Float32Products() as mode:
        same = torch.mm(a, b)
        with pytest.raises(RuntimeError, match="dtype"):
            torch.mm(a, b.to(torch.bfloat16))
    assert mode.computed == 0
    assert torch.equal(same, torch.mm(a, b))


class Kernels(TorchDispatchMode):
    """What reaches the kernels: products by name, and whether on bfloat16; entered before `Float32Products`, it is below."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Any, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in flop_registry or func in PRODUCTS | FUSED_ATTENTION:
            self.seen.append((func, args[0].dtype == torch.bfloat16))
        return func(*args, **kwargs or {})


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def narrow_llama() -> Any:
    return TINY.model(
        BaseConfig(vocabulary=300, width=64, feed_forward=96, layers=2, heads=2, positions=64), seed=0
    ).to(torch.bfloat16)


def loss_of(model: Any, seed: int = 0) -> Tensor:
    ids = torch.randint(3, 300, (4, 40), generator=torch.Generator().manual_seed(seed))
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def test_no_bfloat16_product_of_a_step_reaches_a_kernel(threads: int) -> None:
    """15 weight matrices, 2 products of attention a layer, 1 of the angles in float32; each bfloat16 one twice backward."""
    model = narrow_llama()
    with Kernels() as kernels, Float32Products() as mode:
        loss = loss_of(model)
        forward = mode.computed
        loss.backward()
    assert forward == 15 + 2 * 2
    assert mode.computed == 3 * forward
    assert len(kernels.seen) == mode.computed + 1
    assert not any(narrow for _, narrow in kernels.seen)


def test_no_bfloat16_product_of_generation_reaches_a_kernel(threads: int) -> None:
    model, ids = narrow_llama().eval(), torch.full((2, 5), 7)
    with Kernels() as kernels, Float32Products():
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert len(kernels.seen) >= 3 * 19
    assert not any(narrow for _, narrow in kernels.seen)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_attention_in_one_kernel_is_refused(context: Callable[[], Any]) -> None:
    q, k, v = drawn([(1, 2, 8, 16)] * 3, 0)
    with context(), Float32Products(), pytest.raises(ValueError, match="eager"):
        torch.nn.functional.scaled_dot_product_attention(q, k, v)


class Compared(TorchDispatchMode):
    """Compares every native product that passes with ours of the same arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products, self.unequal, self.numbers = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        native = func(*args, **kwargs or {})
        if func in PRODUCTS and args[0].dtype == torch.bfloat16:
            with Float32Products():
                ours = func(*args, **kwargs or {})
            _, off = room(func, args, args[-1].shape[-2])
            assert bool(((ours.double() - native.double()).abs() <= 2 * off).all())
            self.products += 1
            self.unequal += int((ours != native).sum())
            self.numbers += ours.numel()
        return native


def test_every_product_of_a_native_step_is_near_ours() -> None:
    """Nothing else differs between the two: the same kernels run on what these products give."""
    with Compared() as compared:
        loss_of(narrow_llama()).backward()
    assert compared.products == 3 * 19
    assert compared.unequal < compared.numbers / 10


def step_of_whole_numbers(computed: Any) -> list[Tensor]:
    """Parameters after one AdamW step whose sums float32 holds exactly, in any order: whole numbers below 2^24."""
    generator = torch.Generator().manual_seed(0)
    numbers = [
        torch.randint(-3, 4, shape, generator=generator).to(torch.bfloat16) for shape in ((40, 64), (64, 96), (96, 50))
    ]
    x, *weights = numbers
    parameters = [torch.nn.Parameter(w) for w in weights]
    optimizer = torch.optim.AdamW(parameters, lr=0.125, weight_decay=0.0)
    with products(computed):
        ((x @ parameters[0]).relu() @ parameters[1]).relu().sum().backward()
    optimizer.step()
    return [p.detach() for p in parameters]


def test_a_whole_step_is_bit_equal_where_no_sum_is_rounded() -> None:
    ours, native = (step_of_whole_numbers(computed) for computed in ("float32", "native"))
    assert all(torch.equal(a, b) for a, b in zip(ours, native, strict=True))


@pytest.mark.parametrize("choice", ["native", "float32"])
def test_a_forced_choice_asks_nothing(choice: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_products, "native_is_fast", lambda: pytest.fail("asked"))
    assert resolve(choice) == choice


@pytest.mark.parametrize(("fast", "computed"), [(True, "native"), (False, "float32")])
def test_auto_is_native_where_that_is_fast(fast: bool, computed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_products, "native_is_fast", lambda: fast)
    assert resolve("auto") == computed


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"avx2": True, "avx512_bf16": False}, False),
        ({"avx512_f": True, "avx512_bw": True}, False),  # oneDNN emulates there
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
        ({"neon": True, "bf16": True}, True),
    ],
)
def test_the_processor_must_have_the_instructions(
    capabilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert native_is_fast() is fast
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert native_is_fast() is False


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the limit is one of x86 instructions")
def test_auto_minds_the_limit_of_onednn() -> None:
    code = "from unforgotten.experiments.arms.products import resolve; print(resolve('auto'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    assert done.stdout.strip() == "float32"
