"""JetStream against a server that is the test: what is said to it, and what of its address can be used."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from kumulus.api.events import NatsTarget
from kumulus_services.events.guard import Guard
from kumulus_services.events.jetstream import JetStream
from kumulus_services.events.transport import Unavailable
from tests.patience import PATIENCE
from tests.unit.storage.server import certificate


@pytest.mark.parametrize("bundled", [False, True])
async def test_nothing_is_said_in_clear_to_a_server_without_tls(bundled: bool, tmp_path: Path) -> None:
    heard, bundle = bytearray(), certificate(tmp_path, "127.0.0.1")[0] if bundled else None

    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps({"version": "2.10.0", "max_payload": 1024}).encode() + b"\r\n")
        heard.extend(await reader.read())
        writer.close()
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    target = NatsTarget(url=f"{'nats' if bundled else 'tls'}://127.0.0.1:{port}", ca_bundle=bundle)
    sink = JetStream(target, Guard(True), credentials="s3cret", timeout=5)
    async with server:
        with pytest.raises(Unavailable, match="secure connection not available"):
            await sink.open()
        async with asyncio.timeout(10 * PATIENCE):
            await gone.wait()
    assert not heard


@pytest.mark.parametrize(
    "url", ["nats://host:99999", "nats://[::::]:4222", "nats://\\[::1\\]", "nats://", "nats://[::1"]
)
async def test_a_url_that_cannot_be_used_is_said_and_no_failure(url: str) -> None:
    with pytest.raises(Unavailable):
        await JetStream(
            NatsTarget.model_construct(url=url, ca_bundle=None), Guard(True), credentials=None, timeout=1
        ).open()


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("nats://bus.example.org", True),
        ("tls://10.0.0.1:65535", True),
        ("nats://[fd00::1]:4222", True),
        ("tls://[::ffff:10.0.0.1]", True),
        ("nats://host:65536", False),
        ("nats://host:99999", False),
        ("nats://host:0", False),
        ("nats://\\[::1\\]:4222", False),
        ("nats://[4222]", False),
        ("nats://user:key@host", False),
        ("http://host", False),
    ],
)
def test_which_urls_the_api_takes(url: str, good: bool) -> None:
    schema = NatsTarget.model_json_schema()["properties"]["url"]
    (rule,) = schema["x-kubernetes-validations"]
    found = re.fullmatch(r"self\.matches\(r'(.*)'\)", rule["rule"])
    assert found is not None
    assert (re.search(found.group(1), url) is not None) == good
