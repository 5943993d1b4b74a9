"""What a reference names: registry, repository, tag, digest. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kumulus_agents.storage.protocol import StorageError

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REGISTRY = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?")
_PART = re.compile(r"[a-z0-9]+(?:(?:[.]|__?|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DOCKER = ("docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry."""

    registry: str
    """Host, and port if one is named."""
    repository: str
    tag: str
    digest: str | None = None
    """Of the manifest; counts more than the tag."""


def parse(text: str) -> Reference:
    """The reference that the text is. Raises `StorageError`."""
    name, at, digest = text.partition("@")
    registry, _, path = name.partition("/")
    path, _, tag = path.partition(":")
    if (
        not _REGISTRY.fullmatch(registry)
        or not ("." in registry or ":" in registry)
        or not all(map(_PART.fullmatch, path.split("/")))
        or not (_TAG.fullmatch(tag) if ":" in name[len(registry) :] else not tag)
        or (at and not DIGEST.fullmatch(digest))
    ):
        raise StorageError(
            "The image's reference does not name a registry, a repository and perhaps a tag and a sha256 digest.",
            reason="SourceForbidden",
            retryable=False,
        )
    if registry == _DOCKER[0]:
        registry, path = _DOCKER[1], path if "/" in path else f"library/{path}"
    return Reference(registry, path, tag or "latest", digest or None)
