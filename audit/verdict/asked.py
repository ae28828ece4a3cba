"""The digest of what was asked of models: of items, what was put to them and what counts as right.

items_sha256({"texts": ["a text", "another"]})
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def items_sha256(asked: Mapping[str, Sequence[Any]]) -> str:
    """Return the SHA-256 of the items of each part, in hexadecimal digits.

    The order of the items counts, that of the parts does not.

    Args:
        asked: items by part, values that JSON has.
    """
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
