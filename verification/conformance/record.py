"""A pytest plugin that records what each file of conformance tests did, with which releases of which libraries.

`pytest -p unforgotten.verification.conformance.record --conformance-record FILE.json verification/conformance`. Entries
of files that did not run, as those of another environment, are kept.
"""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unforgotten.verification.conformance.libggml import find_ggml

HERE = Path(__file__).parent
# The distributions that a file compares with; torch and numpy are recorded of all.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "test_bitsandbytes.py": ("bitsandbytes",),
    "test_compressed_tensors.py": ("compressed-tensors",),
    "test_double_quant.py": ("bitsandbytes",),
    "test_gguf.py": ("gguf",),
    "test_gguf_k.py": ("gguf", "libggml"),
    "test_gptqmodel.py": ("gptqmodel",),
    "test_gptqmodel_awq.py": ("gptqmodel",),
    "test_hqq.py": ("hqq",),
    "test_llmcompressor.py": ("llmcompressor", "compressed-tensors"),
    "test_torchao.py": ("torchao",),
    "test_transformers_fp8.py": ("transformers",),
    "test_traps.py": ("bitsandbytes", "gguf", "libggml", "gptqmodel", "hqq", "torchao", "transformers"),
    "legacy/test_auto_gptq.py": ("auto-gptq",),
    "legacy/test_autoawq.py": ("autoawq",),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance-record", type=Path, metavar="FILE.json", help="record the outcomes here")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--conformance-record"):
        config.pluginmanager.register(Recorder(path))


class Recorder:
    """Counts outcomes by file, and writes them at the end of the session."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one outcome a test; an error in setup or teardown is a failure."""
        if report.when == "call" or report.outcome != "passed":
            self._count(report.nodeid, report.outcome)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a module that is skipped or cannot be collected as one test."""
        if report.outcome != "passed":
            self._count(report.nodeid, report.outcome)

    def pytest_sessionfinish(self) -> None:
        """Write the record; entries of other files stay."""
        old = json.loads(self.path.read_text()) if self.path.exists() else {"files": {}}
        files: dict[str, Any] = {**old["files"], **self._entries()}
        record = {"schema": 1, "files": {name: files[name] for name in sorted(files)}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(record, indent=1) + "\n")

    def _count(self, nodeid: str, outcome: str) -> None:
        name = nodeid.partition("::")[0].rpartition("conformance/")[2]
        if name in LIBRARIES:
            self.counts.setdefault(name, Counter())[outcome] += 1

    def _entries(self) -> dict[str, Any]:
        return {
            name: {
                **{outcome: counts[outcome] for outcome in ("passed", "skipped", "failed")},
                "libraries": {n: version_of(n) for n in LIBRARIES[name]},
                "machine": machine(),
            }
            for name, counts in self.counts.items()
        }


def version_of(name: str) -> str | None:
    """Return the release of a distribution, or of libggml, which says it itself; None where it is missing."""
    if name == "libggml":
        path = find_ggml()
        return None if path is None else _ggml_version(path)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ggml_version(path: str) -> str:
    function = ctypes.CDLL(path).ggml_version
    function.restype = ctypes.c_char_p
    return str(function().decode())


def machine() -> dict[str, str | None]:
    """Describe what the bits may depend on besides: the processor's instructions, torch, numpy, Python; and the day."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version_of("numpy"),
    }
