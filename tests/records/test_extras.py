"""A missing package is named in one line, with what to install."""

from __future__ import annotations

import importlib.util

import pytest

from unforgotten.records.extras import need


def test_the_first_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "numpy" else real(name, *a))
    with pytest.raises(ValueError, match=r"^numpy is missing: pip install 'unforgotten\[x\]'$"):
        need("unforgotten[x]", "pathlib", "numpy", "scipy")
    need("unforgotten[x]", "pathlib", "scipy")
