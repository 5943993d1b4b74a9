"""The image server: ranges as clients that resume need them, and nothing outside its directory."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kumulus_lab.imageserver import Handler
from tests.patience import PATIENCE

_CONTENT = bytes(range(256)) * 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    directory = tmp_path / "images"
    (directory / "below").mkdir(parents=True)
    (directory / "a.qcow2").write_bytes(_CONTENT)
    (directory / "below/b").write_text("below")
    (tmp_path / "secret").write_text("secret")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=directory)) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", made.server_port, timeout=5 * PATIENCE)
        yield connection
        connection.close()
        made.shutdown()
        thread.join()


class _Quiet(Handler):
    def log_message(self, *_: object) -> None:
        """Nothing; a test says enough."""


def _get(server: http.client.HTTPConnection, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    server.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = server.getresponse()
    return answer, answer.read()


def test_the_whole_file(server: http.client.HTTPConnection) -> None:
    answer, body = _get(server, "/a.qcow2")
    assert (answer.status, body) == (200, _CONTENT)
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_the_rest_of_a_file(server: http.client.HTTPConnection) -> None:
    answer, body = _get(server, "/a.qcow2", Range="bytes=1000-")
    assert (answer.status, body) == (206, _CONTENT[1000:])
    assert answer.headers["Content-Range"] == "bytes 1000-1023/1024"


def test_a_part_of_a_file(server: http.client.HTTPConnection) -> None:
    assert _get(server, "/a.qcow2", Range="bytes=10-19")[1] == _CONTENT[10:20]


def test_beyond_the_end(server: http.client.HTTPConnection) -> None:
    assert _get(server, "/a.qcow2", Range="bytes=1024-")[0].status == 416
    assert _get(server, "/a.qcow2")[0].status == 200


def test_a_file_that_changed_is_sent_whole(server: http.client.HTTPConnection) -> None:
    answer, body = _get(server, "/a.qcow2", Range="bytes=1000-", If_Range='"another"')
    assert (answer.status, body) == (200, _CONTENT)


@pytest.mark.parametrize("path", ["/", "/missing", "/../secret", "/below/b", "/below", "/%2e%2e/secret"])
def test_nothing_else(server: http.client.HTTPConnection, path: str) -> None:
    assert _get(server, path)[0].status == 404
