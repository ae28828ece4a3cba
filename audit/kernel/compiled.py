"""Machine code of the kernels: compiled on first use, and kept for the next where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


def compiled(*, fastmath: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile without Python's lock and with IEEE division; `fastmath` frees the order of sums, see `scalar`.

    Numba keeps machine code beside the source, or in the user's cache directory where that cannot be written. Where
    neither can, or where the disk is full, every process compiles anew.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            found: Any = njit(cache=True, **options)(function)
        except RuntimeError:  # "no locator available"
            return njit(**options)(function)
        found._cache = _Kept(found._cache)
        return found

    return decorate


class _Kept:
    """Numba's cache of a function, which is no reason to fail."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code if that can be."""
        with suppress(OSError):
            self._cache.save_overload(sig, data)
