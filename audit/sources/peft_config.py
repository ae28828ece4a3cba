"""What `adapter_config.json` of PEFT says about a LoRA; an option that changes the weights and is unknown is refused.

In goes the text of the file, out comes what merging needs of it:

    config = parse_adapter_config(Path("adapter_config.json"), text)
    config.scaling_of("model.layers.0.self_attn.q_proj")  # alpha / r, or its own by `alpha_pattern`
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.hostile_json import parse_json_object

HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Read elsewhere, or without a bearing on what the merged weights are."""
READ = frozenset(
    {
        "alpha_pattern",
        "fan_in_fan_out",
        "init_lora_weights",
        "lora_alpha",
        "lora_bias",
        "peft_type",
        "r",
        "rank_pattern",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    }
)
INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base weights
MODULE = re.compile(r"\^?[A-Za-z0-9_.\-]+\$?", re.ASCII)
MAX_RANK = 1 << 16
MERGE = "or be merged by merge_and_unload of PEFT first, where it can be"
MAX_ROWS = 1 << 31
MAX_NAME = 1024  # characters of the base


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA: w + scaling(module) B A.

    Attributes:
        path: path of the file.
        base: name of the base: a path or `org/name`; empty if none is named.
        revision: revision of the base, if one is named.
        rank, alpha: rank and alpha of modules that no pattern names.
        ranks, alphas: rank and alpha by module name, or its end after a dot; the first that fits counts.
        rslora: whether the scaling is alpha / sqrt(r) instead of alpha / r.
        dora: whether rows are rescaled to stored magnitudes.
        fan_in_fan_out: whether the base stores (in, out), as GPT-2 does.
        bias: whether factors B have a bias, which is added to that of the base.
        tokens: rows whose own values the adapter stores, by module; by an empty name for the embedding.
    """

    path: Path
    base: str
    revision: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, float]
    alphas: Mapping[str, float]
    rslora: bool
    dora: bool
    fan_in_fan_out: bool
    bias: bool
    tokens: Mapping[str, tuple[int, ...]]

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """Return the rows of a module that the adapter replaces; None where it names none."""
        named = (rows for key, rows in self.tokens.items() if key and fits_pattern(key, module))
        return next(named, self.tokens.get(""))

    def rank_of(self, module: str) -> int:
        """Return the rank of a module."""
        return int(_by_pattern(self.ranks, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """Return the factor of B A: alpha / r, or alpha / sqrt(r) with rslora."""
        rank = self.rank_of(module)
        return _by_pattern(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def _by_pattern(values: Mapping[str, float], module: str, default: float) -> float:
    return next((value for key, value in values.items() if fits_pattern(key, module)), default)


def fits_pattern(key: str, module: str) -> bool:
    """Return whether a key of a pattern is the name of a module, or its end after a dot."""
    name = key.removeprefix("^").removesuffix("$")
    return module == name or (not key.startswith("^") and module.endswith("." + name))


def parse_adapter_config(path: Path, text: bytes) -> AdapterConfig:
    """Read a configuration.

    Raises:
        CheckpointError: it is no LoRA, sets an option whose weights this code cannot merge, or has a bad value.
    """
    entries = parse_json_object(path, text)
    if entries.get("peft_type") != "LORA":
        raise CheckpointError(path, f"must have peft_type LORA, {MERGE}", repr(entries.get("peft_type")))
    for key, value in entries.items():
        if value and key not in HARMLESS | READ:
            raise CheckpointError(path, f"must leave {key!r} unset, {MERGE}", repr(value))
    init = entries.get("init_lora_weights", True)
    if not any(init is known or init == known for known in INITS):
        rule = "must have init_lora_weights that leave the base as it is (convert to plain LoRA)"
        raise CheckpointError(path, rule, repr(init))
    base, revision = entries.get("base_model_name_or_path") or "", entries.get("revision")
    if not isinstance(base, str) or len(base) > MAX_NAME or "\0" in base:
        raise CheckpointError(path, "must name a base_model_name_or_path", repr(base))
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError(path, "must have a text for revision", repr(revision))
    flags = {key: _flag(path, entries, key) for key in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias")}
    if flags["use_dora"] and flags["fan_in_fan_out"]:
        raise CheckpointError(path, "must not have use_dora with fan_in_fan_out", "both")
    return AdapterConfig(
        path=path,
        base=base,
        revision=revision,
        rank=int(_number(path, "r", entries.get("r"), whole=True)),
        alpha=_number(path, "lora_alpha", entries.get("lora_alpha")),
        ranks=_patterns(path, entries, "rank_pattern", whole=True),
        alphas=_patterns(path, entries, "alpha_pattern"),
        rslora=flags["use_rslora"],
        dora=flags["use_dora"],
        fan_in_fan_out=flags["fan_in_fan_out"],
        bias=flags["lora_bias"],
        tokens=_token_indices(path, entries.get("trainable_token_indices")),
    )


def _token_indices(path: Path, value: object) -> Mapping[str, tuple[int, ...]]:
    """Return module -> rows of `trainable_token_indices`; the key of a plain list is empty: it is of the embedding.

    Raises:
        CheckpointError: it is no list, or object of lists, of different indices >= 0.
    """
    lists = value if isinstance(value, dict) else {"": value or []}
    found: dict[str, tuple[int, ...]] = {}
    for module, indices in lists.items():
        whole = isinstance(indices, list) and all(type(i) is int and 0 <= i < MAX_ROWS for i in indices)
        if not isinstance(indices, list) or not whole or len(set(indices)) != len(indices):
            rule = "must have lists of different indices in trainable_token_indices"
            raise CheckpointError(path, rule, repr(indices))
        found[module] = tuple(indices)
    return found if value else {}


def _flag(path: Path, entries: Mapping[str, object], key: str) -> bool:
    value = entries.get(key)
    if value not in (True, False, None):
        raise CheckpointError(path, f"must have true or false for {key}", repr(value))
    return bool(value)


def _number(path: Path, key: str, value: object, *, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not isinstance(value, int | float):
        raise CheckpointError(path, f"must have a number for {key}", repr(value))
    low, high = (1, MAX_RANK) if whole else (-1e30, 1e30)
    if not low <= value <= high:
        raise CheckpointError(path, f"must have {key} in {low} … {high}", repr(value))
    return float(value)


def _patterns(path: Path, entries: Mapping[str, object], key: str, *, whole: bool = False) -> dict[str, float]:
    patterns = entries.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(path, f"must have an object for {key}", repr(patterns))
    for module in patterns:
        if not MODULE.fullmatch(module):  # a regular expression of PEFT; a hostile one can hang
            raise CheckpointError(path, f"must have plain module names in {key}, {MERGE}", repr(module))
    return {module: _number(path, f"{key} of {module}", value, whole=whole) for module, value in patterns.items()}
