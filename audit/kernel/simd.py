"""The instruction sets that the audit's kernels can run on: which there are here, and which one is taken.

"avx512", "avx2" and "neon" are the kernel of sixteen weights, lowered for that instruction set; "scalar" is the compiled
kernel of one weight after another, which any processor runs; "numpy" is the reference, which compiles nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm

VARIABLE = "UNFORGOTTEN_SIMD"
AUTO, SCALAR, NUMPY = "auto", "scalar", "numpy"
SMALL = 1 << 22
"""Weights times formats that the reference measures in one to two seconds."""

VECTOR_PATHS = ("avx512", "avx2", "neon")
"""Fastest first."""

_HOST_FEATURES: Mapping[str, tuple[str, ...]] = {
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"),
    "avx2": ("avx2", "fma"),
    "neon": (),  # every AArch64 processor of an operating system has it, and not all name it
}
_ARCHITECTURES: Mapping[str, str] = {"avx512": "x86_64", "avx2": "x86_64", "neon": "aarch64"}
_PROBES: Mapping[str, tuple[str, ...]] = {
    "avx512": (r"vpmullw\s.*zmm", r"vpmullq\s.*xmm", r"vfmadd\d+pd"),  # BW; DQ and VL; FMA
    "avx2": (r"vpmullw\s.*[yz]mm", r"vfmadd\d+pd"),
    "neon": (r"fmla[\s.]",),
}
"""What stands in the assembly of _ASKED where the instructions are there."""
_ASKED = """
define void @probe(ptr %p, ptr %q, ptr %r) {
  %a = load <32 x i16>, ptr %p
  %b = mul <32 x i16> %a, %a
  store <32 x i16> %b, ptr %p
  %c = load <2 x i64>, ptr %q
  %d = mul <2 x i64> %c, %c
  store <2 x i64> %d, ptr %q
  %e = load <2 x double>, ptr %r
  %f = call <2 x double> @llvm.fma.v2f64(<2 x double> %e, <2 x double> %e, <2 x double> %e)
  store <2 x double> %f, ptr %r
  ret void
}
declare <2 x double> @llvm.fma.v2f64(<2 x double>, <2 x double>, <2 x double>)
"""


@cache
def available_paths() -> tuple[str, ...]:
    """Return the paths that can run in this process, fastest first; "scalar" and "numpy" always can.

    A vector path needs its instructions twice: of the processor, and of the machine that Numba compiles for, which
    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may set to less. LLVM ends the process where an instruction is not there.
    """
    host = _host_features()
    target = _target()
    found = tuple(
        name
        for name in VECTOR_PATHS
        if all(host.get(feature, False) for feature in _HOST_FEATURES[name]) and has_instructions(name, *target)
    )
    return (*found, SCALAR, NUMPY)


def has_instructions(path: str, triple: str, cpu: str, features: str) -> bool:
    """Return whether LLVM has the instructions of a vector path for a machine, by what it makes of plain vector code.

    Args:
        path: one of VECTOR_PATHS.
        triple: name of the machine in LLVM's terms, such as "x86_64-unknown-linux-gnu".
        cpu: name of the processor, such as "haswell".
        features: features, "+" or "-" and a name each, with commas; what is not named is as the processor has it.
    """
    if not triple.startswith((_ARCHITECTURES[path], "arm64" if path == "neon" else "\0")):
        return False
    assembly = _assembly(triple, cpu, features)
    return all(re.search(probe, assembly) for probe in _PROBES[path])


def _host_features() -> Mapping[str, bool]:
    try:
        return llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot ask on this operating system
        return {}


@cache
def _assembly(triple: str, cpu: str, features: str) -> str:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    module = llvm.parse_assembly(f'target triple = "{triple}"\n{_ASKED}')
    return machine.emit_assembly(module)


def _target() -> tuple[str, str, str]:
    """Return the triple, processor and features that Numba compiles for."""
    from numba.core.registry import cpu_target

    context: Any = cpu_target.target_context
    triple, cpu, features = context.codegen().magic_tuple()
    return triple, cpu, features


def path_for(size: int) -> str:
    """Return the path that UNFORGOTTEN_SIMD names; where it is "auto", empty or not set, the one for this much work.

    Small work is done by "numpy": to compile the kernels once takes longer, and to load them nearly as long.

    Args:
        size: weights times formats.

    Raises:
        ValueError: no path has this name, or this process cannot run it.
    """
    named = os.environ.get(VARIABLE) or AUTO
    if named != AUTO:
        return checked_path(named)
    return NUMPY if size <= SMALL else available_paths()[0]


def processor() -> str:
    """Return LLVM's name of the processor that the kernels are compiled for, such as "znver4"."""
    return _target()[1]


def checked_path(name: str) -> str:
    """Return the name of a path that this process can run.

    Raises:
        ValueError: it cannot.
    """
    if name not in available_paths():
        here = ", ".join((*available_paths(), AUTO))
        raise ValueError(f"{VARIABLE} must be one of {here} on this machine, got {name!r}")
    return name
