"""The join bundle: all that a machine needs to become a host, in one file that only root may read."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kumulus.api.base import DOMAIN, VERSION


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is in it. The token is a secret: it is never printed but in the bundle itself."""

    server: str
    ca: bytes
    host: str
    namespace: str
    token: str

    def to_json(self) -> str:
        """The file's content; `kumulus-agent join --bundle` reads it."""
        return json.dumps(
            {
                "apiVersion": f"{DOMAIN}/{VERSION}",
                "kind": "JoinBundle",
                "server": self.server,
                "caData": base64.b64encode(self.ca).decode(),
                "host": self.host,
                "namespace": self.namespace,
                "token": self.token,
            },
            indent=2,
        )

    def __repr__(self) -> str:
        return f"Bundle(host={self.host!r}, server={self.server!r})"


def write(path: Path, content: str) -> None:
    """Put the content there whole or not at all, readable by its owner alone from the first byte. Raises `OSError`."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(content + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
