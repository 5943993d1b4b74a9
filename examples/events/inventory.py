#!/usr/bin/env python3
"""An inventory of a namespace that knows Kumulus by its events alone: it asks the API for nothing.

    WEBHOOK_SECRET=... inventory.py [--listen 0.0.0.0:8000]

POST /events takes events, GET / answers what there is: kind and name of each object, with its phase. Needs Python 3.11 and
nothing else. What it shows is what every receiver has to do:

* It says that it wants events (OPTIONS), and of whom.
* It believes what is signed with its secret, and is not old.
* It may get an event twice, and events of one object in an order other than theirs when they were sent once more on
  request: what is older than what it knows changes nothing.
* It answers 2xx when it has the event for certain, and no sooner.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

ORIGIN = "kumulus.io"
OLD_SECONDS = 300
BODY_MAX = 1 << 20


class Inventory:
    """What there is, by uid."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: dict[str, tuple[str, dict[str, Any] | None]] = {}

    def take(self, event: dict[str, Any]) -> None:
        """Learn from one event. What is older than what is known is no news; the end of an object is the last word."""
        uid, sequence, ended = event["kumulusuid"], event["sequence"], event["type"].endswith(".deleted")
        item = event["data"]["object"]
        entry = {
            "kind": event["kumuluskind"],
            "name": event["kumulusname"],
            "phase": item.get("status", {}).get("phase"),
        }
        with self._lock:
            before = self._known.get(uid)
            if before is not None and (before[1] is None or (before[0] >= sequence and not ended)):
                return
            self._known[uid] = (sequence, None if ended else entry)

    def listed(self) -> list[dict[str, Any]]:
        """All that is there."""
        with self._lock:
            found = [entry for _, entry in self._known.values() if entry is not None]
        return sorted(found, key=lambda entry: (entry["kind"], entry["name"]))


def genuine(secret: bytes, headers: Any, body: bytes) -> bool:
    """Whether who sent this has the secret, and sent it just now (www.standardwebhooks.com)."""
    identity, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not sent.isdigit() or abs(time.time() - int(sent)) > OLD_SECONDS:
        return False
    digest = hmac.new(secret, f"{identity}.{sent}.".encode() + body, hashlib.sha256).digest()
    wanted = "v1," + base64.b64encode(digest).decode()
    return any(hmac.compare_digest(wanted, one) for one in headers.get("webhook-signature", "").split())


class Handler(BaseHTTPRequestHandler):
    """One request."""

    inventory: Inventory
    secret: bytes
    protocol_version = "HTTP/1.1"

    def do_OPTIONS(self) -> None:
        """The handshake of CloudEvents webhooks."""
        wanted = self.headers.get("WebHook-Request-Origin") == ORIGIN
        self._answer(200 if wanted else 403, {"WebHook-Allowed-Origin": ORIGIN} if wanted else {})

    def do_POST(self) -> None:
        """An event."""
        length = int(self.headers.get("Content-Length", 0))
        if length > BODY_MAX:
            self.close_connection = True
            return self._answer(413)
        body = self.rfile.read(length)
        if not genuine(self.secret, self.headers, body):
            return self._answer(401)
        self.inventory.take(json.loads(body))
        return self._answer(204)

    def do_GET(self) -> None:
        """The inventory."""
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(self.inventory.listed()).encode())

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description="An inventory kept by events alone.")
    parser.add_argument("--listen", default="127.0.0.1:8000", metavar="ADDRESS:PORT")
    address, _, port = parser.parse_args().listen.rpartition(":")
    Handler.inventory, Handler.secret = Inventory(), os.environ["WEBHOOK_SECRET"].encode()
    ThreadingHTTPServer((address, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
