"""A read-only web server for guest images, with ranges, so that a cut download can be resumed.

Run as a program of its own: `python -m kumulus_lab.imageserver --address A --port P --directory D`. Serves the
plain files of one directory, nothing above it and nothing below.
"""

from __future__ import annotations

import argparse
import http
import http.server
import re
from functools import partial
from pathlib import Path

_RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")
_CHUNK = 1 << 18


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves GET and HEAD of the files in one directory."""

    protocol_version = "HTTP/1.1"
    server_version = "kumulus-lab"

    def __init__(self, *arguments: object, directory: Path) -> None:
        self._directory = directory
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """The file, or the part of it that was asked for."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """What GET would say, without the file."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self._directory / Path(self.path.partition("?")[0]).name
        if not path.is_file():
            self.send_error(http.HTTPStatus.NOT_FOUND)
            return
        size = path.stat().st_size
        tag = f'"{size}-{path.stat().st_mtime_ns}"'
        first, last = 0, size - 1
        asked = _RANGE.match(self.headers.get("Range", ""))
        partial_answer = asked is not None and self.headers.get("If-Range", tag) == tag
        if partial_answer and asked is not None:
            first = int(asked.group(1))
            last = min(int(asked.group(2) or last), last)
            if first > last:
                self.send_response(http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(http.HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(http.HTTPStatus.OK)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if body:
            self._send(path, first, last - first + 1)

    def _send(self, path: Path, first: int, count: int) -> None:
        with path.open("rb") as file:
            file.seek(first)
            while count > 0 and (chunk := file.read(min(_CHUNK, count))):
                self.wfile.write(chunk)
                count -= len(chunk)


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description="Serve guest images.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    chosen = parser.parse_args()
    handler = partial(Handler, directory=chosen.directory.resolve())
    with http.server.ThreadingHTTPServer((chosen.address, chosen.port), handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
