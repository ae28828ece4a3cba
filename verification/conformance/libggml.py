"""libggml by ctypes. It comes with llama-cpp-python, or UNFORGOTTEN_GGML names a libggml-base.so.

`cmake --target ggml-base` in the source archive of llama-cpp-python builds it alone in a minute.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


def find_ggml() -> str | None:
    """Find the path of the library libggml; None where there is none."""
    if named := os.environ.get("UNFORGOTTEN_GGML"):
        return named
    spec = importlib.util.find_spec("llama_cpp")
    folders = (spec.submodule_search_locations or []) if spec else []
    found = [str(p) for folder in folders for p in Path(folder).rglob("*ggml-base.*")]
    return found[0] if found else None


def load_ggml() -> ctypes.CDLL:
    """Load libggml, with `ggml_quantize_chunk` typed; skip the test where there is none."""
    if not (path := find_ggml()):
        pytest.skip("no libggml: pip install llama-cpp-python, or set UNFORGOTTEN_GGML")
    library = ctypes.CDLL(path)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def quantize_chunk(library: ctypes.CDLL, x: NDArray[Any], number: int, out: NDArray[Any]) -> int:
    """Quantize x (rows, columns) to a ggml type, into `out` (uint8, large enough); return how many bytes it says."""
    rows, columns = x.shape
    x = np.ascontiguousarray(x, np.float32)
    return int(library.ggml_quantize_chunk(number, x.ctypes.data, out.ctypes.data, 0, rows, columns, None))
