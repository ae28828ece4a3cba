"""The JSON Schema of `audit.json`, made from the types of the result; `schema/audit.schema.json` is its text.

Every object is closed: a key that no type names is an error, and so is a missing one. `python -m
unforgotten.audit.outputs.json_schema` prints it anew after the types have changed.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from unforgotten.audit.outputs.result import SCHEMA, AuditResult

SCHEMA_FILE = "schema/audit.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN: Mapping[Any, Mapping[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
}
NARROWED: Mapping[str, Mapping[str, Any]] = {
    "schema": {"const": SCHEMA},
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}
"""Keys with a rule that their type cannot hold."""


def audit_schema() -> dict[str, Any]:
    """Return the JSON schema of an audit's result, with one definition a type."""
    definitions: dict[str, Any] = {}
    root = _schema_of(AuditResult, definitions)
    return {
        "$schema": DIALECT,
        "$id": f"urn:unforgotten:audit:{SCHEMA.rsplit('/', 1)[1]}",
        "title": SCHEMA,
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def shipped_schema() -> dict[str, Any]:
    """Return the JSON schema that is installed with the package."""
    return json.loads(files("unforgotten.audit").joinpath(SCHEMA_FILE).read_text("utf-8"))


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in PLAIN:
        return dict(PLAIN[kind])
    if is_typeddict(kind):
        return _reference(kind, definitions)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(a, definitions) for a in arguments]}
    if origin is list:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    raise TypeError(f"a type of the result must have a JSON Schema, got {kind!r}")


def _reference(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}  # a type that holds itself would never end
        hints = get_type_hints(kind)
        keys = {key: NARROWED.get(key) or _schema_of(t, definitions) for key, t in hints.items()}
        definitions[name] = {
            "type": "object",
            "properties": keys,
            "required": sorted(kind.__required_keys__),
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{name}"}


if __name__ == "__main__":
    print(json.dumps(audit_schema(), indent=1))
