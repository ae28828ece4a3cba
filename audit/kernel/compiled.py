"""Machine code of the kernels: compiled on first use, and kept for the next where there is a place for it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

from unforgotten.theory.geometry.dead_zone import BINADES

UNREADABLE = AttributeError, EOFError, ImportError, IndexError, pickle.UnpicklingError  # what unpickling may raise


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
        index = found._cache._cache_file
        index._source_stamp = index._source_stamp, kernel_digest()
        found._cache = _Kept(found._cache)
        return found

    return decorate


@cache
def kernel_digest() -> str:
    """Return a digest of all modules of the kernel.

    Numba looks whether the file of a function has changed; what the function inlines, and the numbers that it reads at
    compile time, stand in other files. With this digest beside the age of the file no old machine code is found. The
    binades are the one thing outside the kernel that `slots` makes numbers of.
    """
    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join([*sources, repr(BINADES).encode()])).hexdigest()


class _Kept:
    """Numba's cache of a function, which is no reason to fail."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return kept machine code, if there is any.

        What another release kept may name classes that are no more; it is thrown away.
        """
        try:
            return self._cache.load_overload(sig, target_context)
        except UNREADABLE:
            with suppress(OSError):
                self._cache.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code if that can be."""
        with suppress(OSError):
            self._cache.save_overload(sig, data)
