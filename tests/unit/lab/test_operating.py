"""The demo's last step: it looks for what its example has, and the client outside tells how long nobody answered."""

from __future__ import annotations

import http.server
import socket
import threading
import time

import pytest
import yaml

from kumulus.api.registry import KINDS
from kumulus_lab import asking, examples, operating

BY_KIND = {model.KIND.kind: model for model in KINDS}


def test_the_demo_looks_for_what_the_example_has() -> None:
    found = {}
    for path in sorted(examples.OPERATIONS.glob("[0-9]-*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            model = BY_KIND[document["kind"]].parse(document)
            found[document["kind"], model.name] = document["spec"]
    assert found["StoragePool", operating.POOL]["parameters"]["shared"]
    assert found["VirtualMachine", operating.MACHINE]["highAvailability"]["enabled"]
    assert found["FloatingIP", operating.ADDRESS]["target"] == {"interface": f"{operating.MACHINE}-eth0"}
    assert found["VirtualMachineMigration", operating.MIGRATION]["vm"] == operating.MACHINE
    assert found["Volume", operating.MACHINE]["pool"] == operating.POOL


def test_how_long_nobody_answered_is_told() -> None:
    class Silent(http.server.BaseHTTPRequestHandler):
        hushed = threading.Event()

        def do_GET(self) -> None:
            if not self.hushed.is_set():
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"here\n")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        began, silent = time.monotonic(), 0.3

        def over() -> bool:
            past = time.monotonic() - began
            (Silent.hushed.set if 0.1 < past < 0.1 + silent else Silent.hushed.clear)()
            return past > 0.1 + silent

        try:
            told = asking.ask(f"http://127.0.0.1:{server.server_port}/", over, every=0.01)
        finally:
            server.shutdown()
            thread.join()
    assert told.asked >= told.answered > 0
    assert told.gap >= silent - 0.05


def test_it_ends_with_an_answer_also_when_none_came_before() -> None:
    """As after a failover: the block ends while a question still waits for its answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, begun = server.getsockname()[1], threading.Event()

        def answer() -> None:
            silent, _ = server.accept()  # the first one is not answered
            connection, _ = server.accept()
            connection.recv(1 << 10)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhere\n")
            connection.close()
            silent.close()

        thread = threading.Thread(target=answer)
        thread.start()
        told = asking.ask(f"http://127.0.0.1:{port}/", lambda: True, every=0.01, begun=begun.set)
        thread.join()
    assert begun.is_set() and (told.asked, told.answered) == (2, 1) and told.gap >= asking.LONGEST and not told.silent


def test_who_answers_no_more_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LAST", 0.1)
    monkeypatch.setattr(asking, "LONGEST", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        told = asking.ask(f"http://127.0.0.1:{deaf.getsockname()[1]}/", lambda: True, every=0.01)
    assert told.silent and not told.answered and told.gap >= 0.1
