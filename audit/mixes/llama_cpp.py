"""The mix of types that `llama-quantize` writes without an importance matrix: which matrix of a model has which type.

A file of type Q4_K_M is not all Q4_K. Values and down projections of some layers, and the output head or the embedding that it
is tied to, have Q6_K; a row that is no multiple of 256 has a type of blocks of 32 in its place.

>>> types_of({"model.embed_tokens.weight": (9, 256), "model.layers.0.mlp.down_proj.weight": (4, 256)}, "Q4_K_S")
{'model.embed_tokens.weight': 'Q6_K', 'model.layers.0.mlp.down_proj.weight': 'Q4_K'}

Source: `llama-quant.cpp` of llama.cpp, as in llama-cpp-python 0.3.36. Falcon, whose rules are others, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from unforgotten.audit.sources.matching.kinds import embeddings_of_head, is_quantized, is_vocabulary
from unforgotten.theory.formats.gguf import BLOCK, FILES, SUPER_BLOCK, fallback_of

Kind = Literal["embedding", "head", "query", "value", "key", "joined", "attention output", "down", "other"]
Shapes = Mapping[str, tuple[int, ...]]

KINDS: Mapping[Kind, re.Pattern[str]] = {
    "joined": re.compile(r"(^|[._])(qkv(_proj)?|c_attn|query_key_value|attn_qkv|Wqkv)\.weight$"),
    "query": re.compile(r"(^|\.)(q_proj|wq|attn_q)\.weight$"),
    "value": re.compile(r"(^|\.)(v_proj|wv|attn_v|attn_kv_b|kv_b_proj)\.weight$"),
    "key": re.compile(r"(^|\.)(k_proj|wk|attn_k)\.weight$"),
    "attention output": re.compile(
        r"(^|\.)(o_proj|wo|attn_output|(attn|attention|self_attn)\.(c_proj|dense|out_proj))\.weight$"
    ),
    "down": re.compile(
        r"(^|\.)(down_proj|w2|fc2|fc_out|dense_4h_to_h|mlp\.c_proj|ffn_down(_exps|_shexp)?)(\.weight)?(\[\d+\])?$"
    ),
}
"""Kind -> names of its matrices, of transformers and of GGUF."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk|blocks|block)\.(\d+)\.")
EXPERT = re.compile(r"experts\.(\d+)\.|\[(\d+)\]$")
FALCON = re.compile(r"(^|\.)self_attention\.query_key_value\.weight$")
LARGE = 80
"""Layers of a model whose values get Q5_K in place of Q4_K where several heads share them: 70B."""
MIXTRAL = 8
"""Experts of a model whose attention gets more bits."""
FIRST = 4
"""Layers whose values a file of size S gives more bits."""


class Matrix(NamedTuple):
    """One matrix: its kind, its layer (None outside of layers), and which of its kind it is, by layer."""

    kind: Kind
    layer: int | None
    place: int


class Model(NamedTuple):
    """What the rules ask of a model.

    Attributes:
        layers: number of layers.
        values: number of layers with values.
        experts: number of experts of a layer.
        head: whether its output head is a matrix of its own.
        shared: whether values have fewer rows than queries.
    """

    layers: int
    values: int
    experts: int
    head: bool
    shared: bool


def types_of(shapes: Shapes, file_type: str) -> dict[str, str]:
    """Return the type of each matrix that is quantized, by name.

    Args:
        shapes: shapes of the tensors of a model, by the names of transformers or of GGUF.
        file_type: type of the file, a key of FILES.

    Raises:
        ValueError: the file type is unknown, the model is Falcon's, a layer has no known value, down projection, or output
            projection where that has a type of its own, so that types would be guessed, or a row is no multiple of 32.
    """
    if file_type not in FILES:
        raise ValueError(f"file type must be one of {', '.join(FILES)}, got {file_type!r}")
    names = [name for name, shape in shapes.items() if is_quantized(name, shape) or is_vocabulary(name, shape)]
    kinds: dict[str, Kind] = {
        name: _vocabulary(name) if is_vocabulary(name, shapes[name]) else _kind(name) for name in names
    }
    if any(FALCON.search(name) for name in names) and any("word_embeddings" in name for name in shapes):
        raise ValueError("model must not be a Falcon for a mix of llama.cpp, whose rules for it are others")
    found = _matrices(kinds)
    model = _model(shapes, found)
    _check_known(found, model, _of_output(model, file_type) != FILES[file_type])
    return {
        name: _fitting(name, shapes[name][-1], _type(found[name], model, file_type, shapes[name][-1])) for name in names
    }


def _matrices(kinds: Mapping[str, Kind]) -> dict[str, Matrix]:
    layers = {name: int(found[1]) if (found := LAYER.search(name)) else None for name in kinds}
    places: dict[str, int] = {}
    for kind in set(kinds.values()):
        own = sorted(
            {layer for name, layer in layers.items() if layer is not None and _family(kinds[name]) == _family(kind)}
        )
        places |= {name: own.index(at) for name, at in layers.items() if kinds[name] == kind and at is not None}
    return {name: Matrix(kinds[name], layers[name], places.get(name, 0)) for name in kinds}


def _vocabulary(name: str) -> Kind:
    return "head" if embeddings_of_head(name) or name.endswith("embed_out.weight") else "embedding"


def _kind(name: str) -> Kind:
    for kind, pattern in KINDS.items():
        if pattern.search(name):
            return kind
    return "other"


def _family(kind: Kind) -> Kind:
    """Return the kind that a matrix is counted with: joined projections hold values."""
    return "value" if kind == "joined" else kind


def _model(shapes: Shapes, found: Mapping[str, Matrix]) -> Model:
    layers = {m.layer for m in found.values() if m.layer is not None}
    values = {m.layer for m in found.values() if m.layer is not None and _family(m.kind) == "value"}
    experts = [int(at[1] or at[2]) for name in found if (at := EXPERT.search(name))]
    rows = {kind: {shapes[name][0] for name, m in found.items() if m.kind == kind} for kind in ("query", "value")}
    return Model(
        layers=len(layers),
        values=len(values),
        experts=1 + max(experts, default=-1),
        head=any(m.kind == "head" for m in found.values()),
        shared=min(rows["value"], default=0) < min(rows["query"], default=0),
    )


def _check_known(found: Mapping[str, Matrix], model: Model, output: bool) -> None:
    for kind in ("value", "down", "attention output") if output else ("value", "down"):
        own = {m.layer for m in found.values() if _family(m.kind) == kind}
        if missing := sorted({m.layer for m in found.values() if m.layer is not None} - own):
            what = {"value": "values", "down": "down projections"}.get(kind, "output projections of attention")
            rule = f"layers must have {what} of a known name for a mix of llama.cpp, which gives them other types"
            raise ValueError(f"{rule}, got none in layer {missing[0]} of {model.layers}")


def _type(m: Matrix, model: Model, file_type: str, columns: int) -> str:
    base = FILES[file_type]
    if m.kind == "head" or (m.kind == "embedding" and not model.head):
        size = SUPER_BLOCK if base.endswith("_K") else BLOCK
        return "Q8_0" if base == "Q8_0" or columns % size else "Q6_K"
    if _family(m.kind) == "value":
        return _of_values(m, model, file_type)
    if m.kind == "down":
        return _of_down(m, model, file_type)
    if model.experts == MIXTRAL and m.kind == "key":
        return "Q8_0"
    return _of_output(model, file_type) if m.kind == "attention output" else base


def _of_output(model: Model, file_type: str) -> str:
    """Return the type of the output projections of attention."""
    if model.experts == MIXTRAL:
        return "Q5_K" if file_type in ("Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M") else FILES[file_type]
    return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(file_type, FILES[file_type])


def _of_values(m: Matrix, model: Model, file_type: str) -> str:
    found = FILES[file_type]
    if file_type == "Q3_K_M":
        found = "Q5_K" if m.place < 2 else "Q4_K"
    elif file_type == "Q3_K_L":
        found = "Q5_K"
    elif file_type.endswith("_M") and _has_more_bits(m.place, model.values):
        found = "Q6_K"
    elif file_type == "Q4_K_S" and m.place < FIRST:
        found = "Q5_K"
    if model.layers == LARGE and model.shared and found in ("Q3_K", "Q4_K"):
        found = "Q5_K"
    return "Q8_0" if model.experts == MIXTRAL else found


def _of_down(m: Matrix, model: Model, file_type: str) -> str:
    at = m.place if m.layer is None or model.experts <= 1 else m.layer
    if file_type == "Q3_K_M":
        return "Q5_K" if at < model.layers // 16 else "Q4_K"
    if file_type == "Q3_K_L":
        return "Q5_K"
    if file_type.endswith("_M") and _has_more_bits(at, model.layers):
        return "Q6_K"
    return "Q5_K" if file_type == "Q4_K_S" and at < model.layers // 8 else FILES[file_type]


def _has_more_bits(at: int, count: int) -> bool:
    """Return whether a layer is one of the first or last eighth, or each third between."""
    return at < count // 8 or at >= 7 * count // 8 or (at - count // 8) % 3 == 2


def _fitting(name: str, columns: int, kind: str) -> str:
    """Return the type, or what takes its place where its blocks do not fit the rows.

    Raises:
        ValueError: no type of blocks fits them, and llama.cpp keeps them in float16.
    """
    other = fallback_of(kind.lower(), columns)
    found = kind if other is None else other.upper()
    if columns % BLOCK:
        raise ValueError(f"rows must be a multiple of {BLOCK} for a mix of llama.cpp, got {columns} columns in {name}")
    return found
