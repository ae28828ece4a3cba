"""Hypothesis profiles: `dev` (default), `ci` (where CI is set), `nightly`; chosen by HYPOTHESIS_PROFILE."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

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
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
