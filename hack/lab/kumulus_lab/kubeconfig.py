"""Files that tell a client which API server to speak to, and as whom."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import yaml

from kumulus_lab.certificates import Pair


def write(path: Path, *, server: str, authority: Path, client: Pair | None = None, token: str | None = None) -> Path:
    """Write a kubeconfig that needs no other file, readable by its owner only."""
    user: dict[str, str] = {}
    if client is not None:
        user = {"client-certificate-data": _inline(client.certificate), "client-key-data": _inline(client.key)}
    if token is not None:
        user = {"token": token}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "lab", "cluster": {"server": server, "certificate-authority-data": _inline(authority)}},
        ],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        yaml.safe_dump(document, file, sort_keys=False)
    draft.replace(path)
    return path


def server(path: Path) -> str:
    """The address of the API server that a kubeconfig names."""
    document = yaml.safe_load(path.read_text())
    return str(document["clusters"][0]["cluster"]["server"])


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
