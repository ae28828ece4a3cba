"""Zero points of GPTQ: two conventions that a label names and a file does not show.

Format v1 (`checkpoint_format: gptq`) stores them less one, v2 as they are. A file under the wrong label decodes to
weights that are off by one step, without an error anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from unforgotten.audit.codes.layer import Layer, Zeros
from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.quantization import Scheme

LABELS: Mapping[int, str] = {1: "gptq", 0: "gptq_v2"}
"""By `Scheme.zero_shift`."""
Layers = Mapping[str, Layer]


def zero_notes(side: str, scheme: Scheme, layers: Layers) -> list[str]:
    """Return the sentence on how the zero points of one side were read; none for what is not GPTQ."""
    if scheme.method != "gptq":
        return []
    head = f"{side}: zero points are read by the convention of checkpoint_format {LABELS[scheme.zero_shift]}"
    uneven = _symmetric_notes(side, scheme, layers)
    if not scheme.zero_shift:
        return [f"{head} (v2), as they are stored.", *uneven]
    found = _zeros(layers.values())
    ones = sorted({f"0x{_ones(zeros.bits):08x}" for zeros in found})
    borrowed = sum(zeros.borrowed for zeros in found)
    told = f"{head} (v1), {' or '.join(ones)} added to every whole word, as GPTQModel's runtime does"
    if not borrowed:
        return [f"{told}; adding one to each code gives the same.", *uneven]
    return [f"{told}; a runtime that adds one to each code by itself reads {borrowed:,} of them otherwise.", *uneven]


def _symmetric_notes(side: str, scheme: Scheme, layers: Layers) -> list[str]:
    """Return the sentence on zero points that contradict `sym`; none where they agree or it is not stated."""
    if not scheme.symmetric:
        return []
    others = sum(int(np.count_nonzero(zeros.values != 1 << (zeros.bits - 1))) for zeros in _zeros(layers.values()))
    if not others:
        return []
    what = f"{others:,} zero points are not the middle code"
    how = "they are decoded as they are stored, and a runtime that goes by sym computes other weights"
    return [f"{side}: the configuration says sym: true, but {what}: {how}."]


def check_one_convention(
    sources: tuple[object, object], schemes: tuple[Scheme, Scheme], before: Layers, after: Layers
) -> None:
    """Compare the zero points of two GPTQ files.

    Raises:
        CheckpointError: they differ by one everywhere, as no update makes them: a label is wrong.
    """
    if any(scheme.method != "gptq" for scheme in schemes):
        return
    steps: set[int] = set()
    for name in before.keys() & after.keys():
        steps |= _steps(before[name], after[name])
        if len(steps) != 1 or not steps <= {-1, 1}:
            return
    if steps:
        labels = [LABELS[scheme.zero_shift] for scheme in schemes]
        other = "v2" if "gptq" in labels else "v1"
        rule = (
            f"must follow the label of its config.json: zero points differ by one everywhere: one file follows the {other} "
            f"convention (mend its checkpoint_format, gptq is v1 and gptq_v2 is v2)"
        )
        raise CheckpointError(str(sources[1]), rule, " and ".join(labels))


def _ones(bits: int) -> int:
    """Return the word of a one in every code."""
    return sum(1 << at for at in range(0, 32, bits))


def _steps(before: Layer, after: Layer) -> set[int]:
    """Return the one step between all zero points, or between all their words with its borrows; 0 if there is none."""
    old, new = _zeros([before]), _zeros([after])
    if not old or not new or old[0].values.shape != new[0].values.shape or old[0].bits != new[0].bits:
        return {0}
    bits, ones = old[0].bits, _ones(old[0].bits)
    words = (new[0].words - old[0].words).astype(np.int64)
    codes = (new[0].values.astype(np.int64) - old[0].values) % 2**bits
    for step in (1, -1):
        if (words == step * ones % 2**32).all() or (codes == step % 2**bits).all():
            return {step}
    return {0}


def _zeros(layers: Iterable[Layer]) -> list[Zeros]:
    return [layer.zeros() for layer in layers if layer.zeros is not None]
