"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE: `dev` (default), `ci` (where CI is set), `nightly`, `seeds`.

None has a deadline: how long an example takes says something of the machine. `verification/` and `tests/` load them
each for itself, so that either runs alone as it does with the other.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SLOW_STRATEGIES = [HealthCheck.too_slow]  # two shared cores: time says nothing about a strategy


def load_profile() -> str:
    """Register every profile, load the one that is asked for, and return its name."""
    settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=SLOW_STRATEGIES)
    settings.register_profile(
        "ci", max_examples=200, deadline=None, derandomize=True, suppress_health_check=SLOW_STRATEGIES
    )
    settings.register_profile(
        "nightly", max_examples=1_000, deadline=None, print_blob=True, suppress_health_check=SLOW_STRATEGIES
    )
    settings.register_profile(  # one of many runs, see `seeds`
        "seeds", max_examples=5, deadline=None, database=None, print_blob=True, suppress_health_check=SLOW_STRATEGIES
    )
    name = os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
    settings.load_profile(name)
    return name
