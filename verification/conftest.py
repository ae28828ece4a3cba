"""Hypothesis profiles: `dev` (default), `ci` (where CI is set), `nightly`; chosen by HYPOTHESIS_PROFILE."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from unforgotten.verification.verdicts import Recorder

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
    max_examples=5_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=SLOW_STRATEGIES,
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
settings.load_profile(PROFILE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--verdicts", type=Path, help="write what the run says of every claim, as verdicts.json"
    )


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--verdicts"):
        config.pluginmanager.register(Recorder(path, PROFILE))
