"""Devices that are not there: their tensors are computed on the CPU, and meet no tensor of the CPU or of another, as on GPUs.

A tensor of one refuses to be computed with one of the CPU, or of another number, that has axes, and to become an array of NumPy:

    with elsewhere() as device:
        model.to(device)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
aten = torch.ops.aten
CROSSING = frozenset(
    {
        aten._to_copy.default,
        aten.copy_.default,
        aten.index.Tensor,
        aten.index_put_.default,
        aten._index_put_impl_.default,
    }
)
"""What takes tensors of several devices: copies, and places in an index."""


class Elsewhere(Tensor):
    """A tensor that says it is elsewhere, on the device of a number."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, number: int = 0) -> Elsewhere:  # noqa: PYI034  # pyright has no Self in a static method
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, number),
        )
        made.held = held
        return made

    @property
    def data(self) -> Tensor:
        """The tensor without its history."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, Elsewhere)
        torch.utils.swap_tensors(self, torch.nn.Parameter(value, self.requires_grad))

    def data_ptr(self) -> int:
        """Return the place of what it holds."""
        return self.held.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a copy, a parameter of a parameter."""
        made: Tensor = Elsewhere(self.held.detach().clone(), self.device.index)
        made = torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made
        memo[id(self)] = made
        return made

    def tolist(self) -> Any:
        """Return its numbers, as any device does."""
        return self.held.tolist()

    def numpy(self, **options: Any) -> Any:
        """Refuse, as a GPU does."""
        raise TypeError("can't convert a tensor that is elsewhere to numpy")

    def __array__(self, dtype: Any = None) -> Any:
        """Refuse, as a GPU does."""
        raise TypeError("can't convert a tensor that is elsewhere to numpy")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as no class method
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return computed(func, args, dict(kwargs or {}))


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU; its result is where its operands are, or where it was asked for."""
    flat = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in flat if isinstance(x, Elsewhere)]
    here = [x for x in flat if not isinstance(x, Elsewhere) and x.ndim and x.device.type == "cpu"]
    if there and here and func not in CROSSING:
        raise RuntimeError(
            f"expected all tensors on one device, got {func} of {there[0].shape} and of the CPU {here[0].shape}"
        )
    if len({x.device for x in there if x.ndim}) > 1 and func not in CROSSING:
        raise RuntimeError(f"expected all tensors on one device, got {func} of {[str(x.device) for x in there]}")
    asked = kwargs.get("device")
    number = there[0].device.index if asked is None and there else torch.device(asked or NAME).index or 0
    away = torch.device(asked).type == NAME if asked is not None else bool(there)
    if func is aten.copy_.default or func is aten.index.Tensor:
        away = isinstance(args[0], Elsewhere)
    if asked is not None and torch.device(asked).type == NAME:  # "meta" stays: transformers loads by it
        kwargs["device"] = torch.device("cpu")
    bare_args, bare_kwargs = tree_map_only(Elsewhere, lambda x: x.held, (args, kwargs))
    found = func(*bare_args, **bare_kwargs)
    if not away:
        return found
    if func is aten._to_copy.default and isinstance(found, Tensor):
        return Elsewhere(found, number)
    wrapped = tree_map_only(Tensor, lambda x: x if isinstance(x, Elsewhere) else Elsewhere(x, number), found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


class _Factories(TorchDispatchMode):
    """Makes tensors of the device where it is asked for."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return computed(func, args, dict(kwargs or {}))


class _Literals(TorchFunctionMode):
    """Makes tensors of numbers on the CPU, and takes them where they are asked for."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1]))
        if func not in (torch.tensor, torch.as_tensor) or named.get("device") is None:
            return func(*args, **named)
        device = torch.device(named.pop("device"))
        return func(*args, **named).to(device)


_known: list[torch.device] = []


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Yield the device, and let its tensors be made."""
    if not _known:
        _setup_privateuseone_for_python_backend(NAME)
        _known.append(torch.device(NAME, 0))
    torch.__future__.set_swap_module_params_on_conversion(True)  # what is tied stays tied when a model moves
    with _Factories(), _Literals():  # type: ignore[no-untyped-call]
        yield _known[0]
