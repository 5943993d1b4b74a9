"""A real registry for a test: Debian's docker-registry, with TLS and a user, and pushes to it by oras."""

# ruff: noqa: ASYNC220, ASYNC240 - small files and one child, in tests

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import oras.client
import pytest
import yaml

from kumulus_lab import ports
from tests.component.cloud import until
from tests.unit.storage.registry import CONTAINER, TAR_GZIP
from tests.unit.storage.server import certificate

PROGRAM = shutil.which("docker-registry")
needs_registry = pytest.mark.skipif(PROGRAM is None, reason="needs docker-registry: make setup")

USER, PASSWORD = "robot", "s3cret-of-robot"
_HTPASSWD = f"{USER}:$2b$04$YEBYCH3kzSVwfUOeyip07eLuNVFEzotnBkU/zhFeqrZStf2Z.E36S\n"


@dataclass
class Registry:
    """What runs."""

    name: str
    bundle: str
    directory: Path

    def push(self, reference: str, data: bytes, title: str = "disk.raw") -> str:
        """An artifact; returns its digest."""
        (self.directory / title).write_bytes(data)
        return self._push(reference, f"{title}:application/vnd.example.disk", None)

    def push_container(self, reference: str, layer: bytes) -> str:
        """A container image of one layer; returns its digest."""
        (self.directory / "layer").write_bytes(layer)
        (self.directory / "config.json").write_text(json.dumps({"rootfs": {"type": "layers", "diff_ids": [
            f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}"]}}))  # fmt: skip
        return self._push(reference, f"layer:{TAR_GZIP}", f"{self.directory / 'config.json'}:{CONTAINER}")

    def _push(self, reference: str, file: str, config: str | None) -> str:
        client = oras.client.OrasClient(self.name, tls_verify=str(self.directory / "server.pem"))
        client.session.auth = (USER, PASSWORD)  # asked first, the registry closes the connection on a large body
        try:
            done = client.push(
                f"{self.name}/{reference}",
                files=[str(self.directory / file)],
                manifest_config=config,
                disable_path_validation=True,
                quiet=True,
            )
            done.raise_for_status()
            return str(done.headers["Docker-Content-Digest"])
        finally:
            client.session.close()


@asynccontextmanager
async def registry(directory: Path) -> AsyncIterator[Registry]:
    """A registry on loopback until the block ends."""
    assert PROGRAM is not None
    directory.mkdir()
    bundle, _ = certificate(directory, "127.0.0.1")
    (port,) = ports.free(1)
    (directory / "htpasswd").write_text(_HTPASSWD)
    pem = str(directory / "server.pem")
    config = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "a", "tls": {"certificate": pem, "key": pem}},
        "auth": {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}},
    }
    (directory / "config.yml").write_text(yaml.safe_dump(config))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "serve", str(directory / "config.yml")], stdout=log, stderr=log, env={"PATH": os.defpath}
        )
    try:

        async def listens() -> bool:
            assert process.poll() is None, (directory / "log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            await writer.wait_closed()
            return True

        await until(listens, "the registry listens", 20)
        yield Registry(f"127.0.0.1:{port}", bundle, directory)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
