"""The pytest plugin behind `--verification-report`: counts what Hypothesis draws, and writes the two files."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis.control import current_build_context

from unforgotten.audit.outputs.page import page_environment
from unforgotten.records.files import write_json, write_text
from unforgotten.verification.recording.tallies import ACTIVE, PROOF, TEST, Report, as_object, fingerprint

JSON, HTML = "verification-report.json", "verification-report.html"


class Plugin:
    """Of one run; `folder` gets the report, `profile` is that of Hypothesis."""

    def __init__(self, folder: Path, profile: str) -> None:
        self.folder, self.profile = folder, profile
        self.report, self.started = Report(), time.perf_counter()
        ACTIVE.append(self.report)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Watch the examples of every property."""
        for item in items:
            handle = getattr(getattr(item, "obj", None), "hypothesis", None)
            name = name_of(item.nodeid)
            if handle is not None and name and not hasattr(handle.inner_test, "watched"):
                handle.inner_test = watched(handle.inner_test, self.report, name)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        """Count a test without a property as one configuration by its name, where it records none itself."""
        before = self.report.records
        yield
        name = name_of(item.nodeid)
        silent = self.report.records == before
        if name and silent and not hasattr(item.obj, "hypothesis"):
            self.report.of(name).single.add(fingerprint(item.nodeid) or 0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count what ran, and what failed or was skipped before it could run."""
        name = name_of(report.nodeid)
        if name is None or (report.when != "call" and report.passed):
            return
        if match := PROOF.search(report.nodeid):
            self.report.proofs[match[1]] = "holds" if report.passed else report.outcome
        tally = self.report.of(name)
        tally.outcomes[report.outcome] += 1
        tally.seconds += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the files."""
        content = as_object(self.report, self.profile, time.perf_counter() - self.started)
        write_json(self.folder / JSON, content)
        write_text(self.folder / HTML, page(content))

    def pytest_unconfigure(self) -> None:
        """Stop recording: the run is over."""
        ACTIVE.remove(self.report)


def name_of(nodeid: str) -> str | None:
    """Return what a test `test_x__property` is named for."""
    match = TEST.search(nodeid)
    return match[1] if match else None


def watched(inner: Callable[..., Any], report: Report, name: str) -> Callable[..., Any]:
    """Wrap the body of a property to note each example that it was not told to reject."""

    @functools.wraps(inner)
    def body(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        drawn = fingerprint((args, kwargs))
        if drawn is None:  # an interactive draw, or an object: by the choices that Hypothesis made
            choices = current_build_context().data.choices
            drawn = fingerprint(("choices", inner.__qualname__, tuple(choices)))
        report.of(name).single.add(drawn or 0)
        return result

    body.watched = True  # type: ignore[attr-defined]
    return body


def page(content: dict[str, Any]) -> str:
    """Render the object as one page that needs nothing but itself."""
    environment = page_environment("unforgotten.verification")
    return environment.get_template("verification-report.html.j2").render(r=content)
