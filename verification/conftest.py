"""The Hypothesis profile, the option of the report, and the mark of what draws samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from unforgotten.verification.profiles import load_profile
from unforgotten.verification.recording.report_plugin import Plugin
from unforgotten.verification.recording.statistical import statistical_tests

HERE = Path(__file__).parent
PROFILE = load_profile()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--verification-report",
        type=Path,
        metavar="DIR",
        help="write verification-report.json and .html: configurations, tightness, violations, time",
    )


def pytest_configure(config: pytest.Config) -> None:
    if folder := config.getoption("--verification-report"):
        if workers := config.getoption("numprocesses", default=None):
            raise pytest.UsageError(f"--verification-report counts in one process, got -n {workers}")
        config.pluginmanager.register(Plugin(folder, PROFILE))
    config.addinivalue_line(  # here too, for an installed package has no pyproject.toml
        "markers", "statistical: draws samples; `python -m unforgotten.verification.recording.seeds`"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what draws samples in a minute. Conformance needs other libraries, and draws inputs only."""
    for item in items:
        function = getattr(item, "originalname", None)
        draws = item.path.parent == HERE and function in statistical_tests(item.path)
        if draws and not item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.statistical)
