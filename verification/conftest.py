"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE: `dev` (default), `ci` (where CI is set), `nightly`, `seeds`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from unforgotten.verification.report_plugin import Plugin
from unforgotten.verification.statistical import statistical_tests

HERE = Path(__file__).parent
SLOW_STRATEGIES = [HealthCheck.too_slow]  # two shared cores: time says nothing about a strategy

settings.register_profile(
    "dev", max_examples=50, deadline=None, suppress_health_check=SLOW_STRATEGIES
)
settings.register_profile(
    "ci",
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=SLOW_STRATEGIES,
)
settings.register_profile(
    "nightly",
    max_examples=1_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=SLOW_STRATEGIES,
)
settings.register_profile(  # one of many runs, see `seeds`
    "seeds",
    max_examples=5,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=SLOW_STRATEGIES,
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
settings.load_profile(PROFILE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--verification-report",
        type=Path,
        metavar="DIR",
        help="write verification-report.json and .html: configurations, tightness, violations, time",
    )


def pytest_configure(config: pytest.Config) -> None:
    if folder := config.getoption("--verification-report"):
        config.pluginmanager.register(Plugin(folder, PROFILE))
    config.addinivalue_line(  # here too, for an installed package has no pyproject.toml
        "markers", "statistical: draws samples; `python -m unforgotten.verification.seeds`"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what draws samples in a minute. Conformance needs other libraries, and draws inputs only."""
    for item in items:
        function = getattr(item, "originalname", None)
        draws = item.path.parent == HERE and function in statistical_tests(item.path)
        if draws and not item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.statistical)
