"""Machine code of the kernels: compiled on first use, and kept for the next where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(*, fastmath: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile without Python's lock and with IEEE division; `fastmath` frees the order of sums, see `kernel`.

    Numba keeps machine code beside the source, or in the user's cache directory where that cannot be written. Where
    neither can, every process compiles anew.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # "no locator available"
            return njit(**options)(function)

    return decorate
