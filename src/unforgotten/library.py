"""What `import unforgotten` offers: an audit, the survival of one tensor, a verdict from anybody's measurements.

Inputs are what a caller has at hand: paths, state dicts or models; arrays or torch tensors of any float dtype; a format's
name. Outputs are those of the command line: the object of `audit.json`, `Survival`, a `Decision`.

    result = audit_pair(before.state_dict(), after.state_dict(), ["int4-g64", "nf4-b64"])
    survival(w, w_new, "int4-g64").gain
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from unforgotten.theory.formats.description import Format
from unforgotten.theory.formats.names import format_named
from unforgotten.theory.laws.update import GridMode, Survival
from unforgotten.theory.laws.update import survival as survival_of

if TYPE_CHECKING:
    from unforgotten.audit.outputs.notebook import PairAudit
    from unforgotten.audit.outputs.result_rows import TensorRow
    from unforgotten.audit.verdict.rule import Decision

__version__ = version("unforgotten")
METRICS = ("M1", "M2", "forget_loss")
LEAKED = ("M1", "M2")
CODES: Mapping[str, str] = {
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e8m0fnu": "F8_E8M0",
}
"""Dtypes of torch that hold codes or scales of quantized weights, and what safetensors calls them."""


def survival(w: Any, w_new: Any, fmt: str | Format, mode: GridMode = "adaptive") -> Survival:
    """Measure what a format leaves of the update between two tensors.

    Args:
        w: weights before, an array or a torch tensor of any float dtype, on any device.
        w_new: weights after, of the same shape.
        fmt: format, or its name.
        mode: "adaptive" fits a grid to each, as deployment does; "fixed" takes that of `w` for both.

    Raises:
        ValueError: the shapes differ, a weight is not finite, a dtype is no float, or a name is unknown.
    """
    before, after = _floats("w", w), _floats("w_new", w_new)
    return survival_of(before, after, format_named(fmt) if isinstance(fmt, str) else fmt, mode)


def _floats(name: str, tensor: Any) -> NDArray[np.float32]:
    values = _array(tensor)
    if not (np.issubdtype(values.dtype, np.floating) or values.dtype.kind == "V"):
        raise ValueError(f"{name} must be of a float dtype, got {name}.dtype={values.dtype}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which is refused
        return values.astype(np.float32)


def _array(tensor: Any) -> NDArray[Any]:
    """Return an array of anything that is one; of a torch tensor its values, bfloat16 and float8 as float32."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    plain = tensor.detach().cpu()
    narrow = plain.is_floating_point() and str(plain.dtype) not in ("torch.float64", "torch.float32", "torch.float16")
    return cast("NDArray[Any]", (plain.float() if narrow else plain).numpy())


def _bytes(tensor: Any) -> NDArray[np.uint8]:
    import torch

    return cast("NDArray[np.uint8]", tensor.detach().cpu().contiguous().view(torch.uint8).numpy())


def audit_pair(
    target: Any,
    unlearned: Any,
    formats: Sequence[str] | None = None,
    out: Path | str | None = None,
    *,
    texts: Path | str | None = None,
    benchmark: Path | str | None = None,
    retrained: Path | str | None = None,
    items: int | None = None,
    decompose: bool = True,
    jobs: int = 1,
    force: bool = False,
    deployed: tuple[Path | str, Path | str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> PairAudit:
    """Audit a pair, as `unforgotten audit` does, and return the object of `audit.json`, a dict that a notebook shows.

    Its `tensors` are the rows of `tensors.parquet`, one dict each, and `to_pandas()` makes a data frame of them.

    Args:
        target: model before unlearning: a path or name as the command line takes it, a state dict, or a model with one;
            weights in memory must be floats of 16 bits or more, for codes of a quantizer are refused as in files.
        unlearned: model after unlearning, likewise.
        formats: names of formats; those of the command line if None.
        out: directory for the files of the audit; none are written without it.
        texts: forget texts, to measure the output of the models on; the models must be paths.
        benchmark: benchmark in MUSE's layout, to measure their behaviour; likewise.
        retrained: model that never saw the forget texts, for M3.
        items: items of each part of the benchmark at most, a sample drawn with seed 0; all if None.
        decompose: switch for measuring two mixed models a format too, which say why something comes back.
        jobs: processes that share the tensors.
        force: whether `out` may hold other files.
        deployed: paths or names of both models as they were really quantized.
        device: device that models run on, as `--device` names it.
        dtype: dtype that they run in, as `--dtype` names it.

    Raises:
        ValueError: the input breaks a rule.
    """
    from unforgotten.audit.findings.recipe import read_recipe
    from unforgotten.audit.options import Asked, read_options
    from unforgotten.audit.outputs.notebook import PairAudit
    from unforgotten.audit.run import audit_pair as audited
    from unforgotten.measured import behaviour_of, output_of

    asked = Asked(
        formats,
        texts=_place(texts),
        benchmark=_place(benchmark),
        retrained=_place(retrained),
        jobs=jobs,
        items=items,
        device=device,
        dtype=dtype,
    )
    options = read_options(asked, "")
    named = [isinstance(side, str | Path) for side in (target, unlearned)]
    if options.needs_models and not all(named):
        raise ValueError("texts and benchmark must have models that are paths, got a model or a state dict")
    with ExitStack() as stack:
        pair = [_path(stack, name, side) for name, side in (("target", target), ("unlearned", unlearned))]
        called = [str(p) if is_path else f"{p.stem} (in memory)" for p, is_path in zip(pair, named, strict=True)]
        both = pair[0], pair[1]
        rows: list[TensorRow] = []
        result = audited(
            *both,
            options.formats,
            _place(out),
            jobs=jobs,
            output=output_of(both, options.measured, asked.texts, device=device, dtype=dtype),
            behaviour=behaviour_of(
                both,
                options.measured,
                asked.benchmark,
                asked.retrained,
                items=items,
                decompose=decompose,
                out=_place(out),
                device=device,
                dtype=dtype,
            ),
            recipe=read_recipe(pair[1]) if named[1] else None,
            force=force,
            called=(called[0], called[1]),
            take_rows=rows.extend,
            deployed=None if deployed is None else (str(deployed[0]), str(deployed[1])),
        )
    return PairAudit(result, rows)


def _place(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _path(stack: ExitStack, name: str, side: Any) -> Path:
    """Return where one side lies on disk; of a state dict, a file in a directory that goes with the stack."""
    if isinstance(side, str | Path):
        return Path(side)
    state = side.state_dict() if hasattr(side, "state_dict") else side
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{name} must be a path, a state dict or a model, got {type(side).__name__}")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unforgotten-")))
    _write_state(folder / f"{name}.safetensors", state)
    return folder / f"{name}.safetensors"


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state dict as one safetensors file; float64 becomes float32, in which everything is measured."""
    header: dict[str, Any] = {}
    arrays: list[NDArray[Any]] = []
    start = 0
    for name, tensor in state.items():
        kind, values = _stored(name, tensor)
        header[str(name)] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [start, start + values.nbytes]}
        start += values.nbytes
        arrays.append(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in arrays:
            file.write(np.ascontiguousarray(values).tobytes())


def _stored(name: str, tensor: Any) -> tuple[str, NDArray[Any]]:
    """Return the name of a tensor's dtype in safetensors, and its values in it."""
    from unforgotten.audit.sources.safetensors_header import DTYPES, FLOATS

    stated = str(getattr(tensor, "dtype", ""))
    if stated == "torch.bfloat16":
        return "BF16", _array(tensor).astype(FLOATS["BF16"])
    if stated in CODES:  # as they are: without their scales they are no weights
        return CODES[stated], _bytes(tensor).view(DTYPES[CODES[stated]])
    if stated.startswith(("torch.float8", "torch.float4")):
        raise ValueError(f"{name} must be of a dtype that safetensors has, got {stated}")
    values = _array(tensor)
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    for kind, dtype in DTYPES.items():
        if values.dtype == dtype:
            return kind, values
    raise ValueError(f"{name} must be of a dtype that safetensors has, got {values.dtype}")


def verdict(
    items: Mapping[str, Mapping[str, Sequence[Any]]], *, weights: str = "unclear", source: str = "given items"
) -> Decision:
    """Judge measurements of any harness by the rule of the audit.

    Args:
        items: by format and metric, the metric of every item on target, unlearned, quantized target and quantized
            unlearned model. Metrics: M1 and M2, of which more means more knowledge, and forget_loss.
        weights: word of the weights leg, where an audit was made.
        source: source of the items, for the reasons.

    Raises:
        ValueError: a metric is unknown, a format has not four lists of one length, or there are fewer than two items.
    """
    from unforgotten.audit.findings.sentences import FINDINGS
    from unforgotten.audit.verdict.legs import BehaviourLeg
    from unforgotten.audit.verdict.rule import decide

    if weights not in FINDINGS:
        raise ValueError(f"weights must be one of {', '.join(FINDINGS)}, got weights={weights!r}")
    formats = [_judged(name, metrics) for name, metrics in items.items()]
    if not formats:
        raise ValueError("items must hold at least one format, got none")
    leg = BehaviourLeg(benchmark=source, metrics={}, formats=formats, leaks=_leaks(items), notes=[])
    return decide(weights, None, leg)


def _judged(name: str, metrics: Mapping[str, Sequence[Any]]) -> Any:
    from unforgotten.audit.verdict.evidence import Items, recovery_row
    from unforgotten.audit.verdict.legs import BehaviourFormat

    rows = []
    for metric, four in metrics.items():
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r} in {name}")
        if len(four) != len(Items._fields):
            raise ValueError(
                f"{name} {metric} must hold four lists of items, {', '.join(Items._fields)}, got {len(four)}"
            )
        models = Items(*(np.asarray(_array(values), np.float64) for values in four))
        rows.append(recovery_row(metric, models, loss=metric == "forget_loss"))
    return BehaviourFormat(format=name, metrics={}, recoveries=rows, effects=[])


def _leaks(items: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[Any]:
    """Return the union leak of each metric that every format measured on the same two models."""
    from unforgotten.audit.verdict.evidence import leak

    found = []
    for metric in LEAKED:
        rows = {
            name: [np.asarray(_array(x), np.float64) for x in m[metric]] for name, m in items.items() if metric in m
        }
        first = next(iter(rows.values()), None)
        if first is not None and all(np.array_equal(row[0], first[0]) for row in rows.values()):
            found.append(leak(metric, first[0], first[1], {name: row[3] for name, row in rows.items()}))
    return [row for row in found if row is not None]
