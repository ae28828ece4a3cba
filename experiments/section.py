"""A section of a run's configuration: frozen, and without keys that it does not know."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Part of a profile. What a method lets a profile set for it is one, too."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def without(tree: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Return the tree of a section without what has these values: a default that older configurations do not have."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value  # JSON has no tuples

    return {
        name: value for name, value in tree.items() if name not in defaults or plain(value) != plain(defaults[name])
    }
