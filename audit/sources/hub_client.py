"""Requests to the Hub: a bounded JSON object, and a range of bytes. The client is that of `huggingface_hub`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unforgotten.audit.sources.errors import CheckpointError
from unforgotten.audit.sources.hostile_json import MAX_JSON_BYTES, parse_json_object
from unforgotten.records.extras import pip_install

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.5  # doubled after each attempt
PLAIN = {"Accept-Encoding": "identity"}  # a compressed answer could unpack to anything
PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
DENIED_STATUS = frozenset({401, 403})


class Passing(Exception):
    """A fault that another attempt may not meet."""


def need_hub(shown: str) -> None:
    """Refuse a Hub source where the client is not installed.

    Raises:
        CheckpointError: it is not.
    """
    if find_spec("huggingface_hub") is None:
        rule = f"must be a directory that exists; for a model of the Hub: {pip_install('unforgotten[hub]')}"
        raise CheckpointError(shown, rule, "no such package")


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def get_json(path: str, query: Mapping[str, str], shown: str) -> dict[str, object]:
    """Return a JSON object of the Hub's API.

    Args:
        path: path after the endpoint.
        query: parameters of the query.
        shown: the name in messages.

    Raises:
        CheckpointError: the Hub cannot be reached, denies it, has no such thing, or answers with something else.
    """

    def once() -> dict[str, object]:
        with _stream(path, PLAIN, query, shown) as response:
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_JSON_BYTES:
                    raise CheckpointError(shown, "must be listed in bounded JSON", len(body))
        return parse_json_object(Path(shown), bytes(body))

    return again(once, shown)


def stream_range(path: str, start: int, stop: int, size: int, shown: str) -> Iterator[bytes]:
    """Yield bytes start … stop - 1 of a file, in pieces as they come.

    Raises:
        CheckpointError: the Hub answers with anything but that range of a file of `size` bytes.
        Passing: the connection broke.
    """
    headers = {"Range": f"bytes={start}-{stop - 1}", **PLAIN}
    with _stream(path, headers, {}, shown) as response:
        stated = response.headers.get("content-range", "")
        if response.status_code != 206 or stated != f"bytes {start}-{stop - 1}/{size}":
            rule = f"must be served by range, bytes {start}-{stop - 1}/{size}"
            raise CheckpointError(shown, rule, f"status {response.status_code}, range {stated!r}")
        came = 0
        for part in response.iter_bytes():
            came += len(part)
            if came > stop - start:
                raise CheckpointError(shown, f"must send {stop - start} bytes", "more")
            yield part
    if came < stop - start:
        raise Passing(f"{came} of {stop - start} bytes")


def again(once: Any, shown: str) -> Any:
    """Return the result of `once`, tried up to ATTEMPTS times while its faults are passing ones.

    Raises:
        CheckpointError: the last attempt failed too.
    """
    for attempt in range(ATTEMPTS):
        try:
            return once()
        except Passing as fault:
            if attempt == ATTEMPTS - 1:
                rule = "must be reachable on the Hub (or a directory that exists)"
                raise CheckpointError(shown, rule, fault) from None
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _stream(path: str, headers: Mapping[str, str], query: Mapping[str, str], shown: str) -> Iterator[Any]:
    import httpx
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = f"{constants.ENDPOINT.rstrip('/')}/{path}"
    try:
        with get_session().stream(
            "GET",
            url,
            params=dict(query) or None,
            headers={**build_hf_headers(), **headers},
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            follow_redirects=True,
        ) as response:
            _check_status(response.status_code, shown)
            yield response
    except httpx.InvalidURL as error:
        raise CheckpointError(shown, "must be reachable on the Hub", error) from None
    except httpx.HTTPError as error:
        raise Passing(f"{type(error).__name__}: {error}") from None


def _check_status(status: int, shown: str) -> None:
    if status in PASSING_STATUS:
        raise Passing(f"status {status}")
    if status in DENIED_STATUS:
        rule = "must be a model that you may read (hf auth login), or a directory that exists"
        raise CheckpointError(shown, rule, f"status {status}")
    if status == 404:
        rule = "must be a directory that exists, or a model and revision of the Hub"
        raise CheckpointError(shown, rule, "neither")
    if not 200 <= status < 300:
        raise CheckpointError(shown, "must be reachable on the Hub", f"status {status}")
