"""Kumulus' container images, made without a registry: the base from distribution packages, ours by their Containerfiles. In
the cache, where what is left of earlier ones makes the next build quick.

Needs root, buildah and mmdebstrap.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kumulus_lab import commands, places
from kumulus_lab.errors import LabError

Say = Callable[[str], None]

_BASE = "localhost/kumulus/base:bookworm"
_SECONDS = 1200
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_SLIM = ("doc", "man", "locale", "info")


def why_none(path: str | None = None) -> str | None:
    """Why images cannot be made and run here; None when they can."""
    if os.geteuid() != 0:
        return "container images need root"
    missing = [program for program in ("buildah", "mmdebstrap", "runc") if shutil.which(program, path=path) is None]
    return f"container images need {', '.join(missing)}; `hack/setup.py --tests` installs them" if missing else None


def build(part: str, say: Say = lambda _: None) -> str:
    """The image of images/PART.Containerfile and the checkout as it is now; returns its name. Raises LabError."""
    with places.exclusive("containers"):
        _ensure_base(say)
        say(f"image {part}")
        name = f"localhost/kumulus/{part}"
        containerfile = places.CHECKOUT / "images" / f"{part}.Containerfile"
        how = [
            "--layers",
            "--force-rm",
            "--pull-never",
            "--isolation",
            "chroot",
            "--network",
            "host",
            f"--build-arg=BASE={_BASE}",
        ]
        with _trust() as mounts:
            _buildah("bud", *how, *mounts, f"--file={containerfile}", f"--tag={name}", places.CHECKOUT)
        return name


@contextmanager
def mounted(name: str) -> Iterator[Path]:
    """The root of an image's file system, until the block ends. Raises LabError."""
    container = _buildah("from", "--pull-never", name).strip()
    try:
        yield Path(_buildah("mount", container).strip())
    finally:
        _buildah("umount", container)
        _buildah("rm", container)


def _ensure_base(say: Say) -> None:
    """A minimal Debian, as an image."""
    if _BASE in _buildah("images", "--format={{.Name}}:{{.Tag}}").split():
        return
    say("a minimal Debian for images, from distribution packages")
    with tempfile.TemporaryDirectory(prefix="kumulus-base-") as work:
        tree = Path(work) / "root.tar"
        skip = [f"--dpkgopt=path-exclude=/usr/share/{place}/*" for place in _SLIM]
        commands.run(["mmdebstrap", "--mode=root", "--variant=minbase", *skip, "bookworm", tree], seconds=_SECONDS)
        container = _buildah("from", "scratch").strip()
        try:
            _buildah("add", container, tree, "/")
            _buildah("commit", container, _BASE)
        finally:
            _buildah("rm", container)


@contextmanager
def _trust() -> Iterator[list[str]]:
    """What a build needs to be able to reach package registries as this machine does: whom to trust."""
    if not _BUNDLE.exists():
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="kumulus-trust-") as work:
        settings = Path(work) / "pip.conf"
        settings.write_text("[global]\ncert = /run/trust/ca.crt\n")
        yield [f"--volume={_BUNDLE}:/run/trust/ca.crt:ro", f"--volume={settings}:/etc/pip.conf:ro"]


def _buildah(*words: str | Path) -> str:
    store = places.cache() / "containers" / "store"
    own: list[str | Path] = ["--root", store, "--runroot", store.with_name("run"), "--storage-driver", "overlay"]
    try:
        return commands.run(["buildah", *own, *words], seconds=_SECONDS).stdout
    except LabError as error:
        raise LabError(f"an image could not be made: {error}") from error
