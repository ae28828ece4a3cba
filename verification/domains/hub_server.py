"""A Hub in this process: files of one repository by range, and the faults that a server may have."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

REPO, COMMIT = "org/model.v1", "a" * 40


class Served:
    """What the server holds, what it was asked for, and which faults it has."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.listing: object = None
        self.ranges: list[tuple[str, int, int]] = []
        self.statuses: list[int] = []  # of the next answers, instead of the right ones
        self.cut: list[int] = []  # the next ranges break off after so many bytes
        self.whole = False  # ignores ranges
        self.moved = 0  # bytes that the stated range is off
        self.denied = 0

    def default_listing(self) -> object:
        siblings = [
            {"rfilename": name, "size": len(content), "lfs": {"sha256": hashlib.sha256(content).hexdigest()}}
            for name, content in self.files.items()
        ]
        return {
            "sha": COMMIT,
            "siblings": [
                *siblings,
                {"rfilename": "README.md", "size": 3},
                {"rfilename": "pytorch_model.bin", "size": 3},
            ],
        }


class Handler(BaseHTTPRequestHandler):
    """Answers of the Hub: the list of files, and a redirection to where their ranges are."""

    served: Served

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.served.denied:
            self._send(self.served.denied, b"")
        elif self.served.statuses:
            self._send(self.served.statuses.pop(0), b"")
        elif path in (f"/api/models/{REPO}/revision/{r}" for r in ("main", "v2", COMMIT, "refs/pr/1")):
            listing = self.served.listing or self.served.default_listing()
            body = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
            self._send(200, body)
        elif match := re.fullmatch(rf"/{REPO}/resolve/{COMMIT}/(.*)", path):
            self._send(302, b"", Location=f"/cdn/{match[1]}")
        elif (match := re.fullmatch("/cdn/(.*)", path)) and match[1] in self.served.files:
            self._send_range(match[1], self.served.files[match[1]])
        else:
            self._send(404, b"{}")

    def _send_range(self, name: str, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked is not None
        first, last = int(asked[1]), int(asked[2])
        self.served.ranges.append((name, first, last + 1))
        if self.served.whole:
            self._send(200, content)
            return
        body = content[first : last + 1]
        moved = first + self.served.moved
        stated = f"bytes {moved}-{moved + len(body) - 1}/{len(content)}"
        self._send(206, body, **{"Content-Range": stated})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status == 206 and self.served.cut:
            self.wfile.write(body[: self.served.cut.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[tuple[Served, str]]:
    """Serve until the end of the context; gives what is served, to be filled, and its address."""
    state = Served()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"served": state}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
