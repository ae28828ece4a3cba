"""A section of a run's configuration: frozen, and without keys that it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Part of a profile. What a method lets a profile set for it is one, too."""

    model_config = ConfigDict(frozen=True, extra="forbid")
