"""Container images of the lab's nodes, made without a registry: the base from distribution packages, ours by their
Containerfiles, others from one program each. In the cache; what is left there of earlier ones makes the next build quick.

Needs root, buildah and mmdebstrap.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kumulus_lab import commands, places
from kumulus_lab.errors import LabError

Say = Callable[[str], None]

PROGRAMS = ("buildah", "mmdebstrap", "runc", "containerd", "ctr")
_BASE = "localhost/kumulus/base:bookworm"
_SECONDS = 1200
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_SLIM = ("doc", "man", "locale", "info")


def why_none(path: str | None = None) -> str | None:
    """Why images cannot be made and run here; None when they can."""
    if os.geteuid() != 0:
        return "a node with pods needs root"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if not Path("/usr/lib/cni/bridge").exists():
        missing.append("containernetworking-plugins")
    return f"a node with pods needs {', '.join(missing)}; `hack/setup.py --tests` installs them" if missing else None


def kumulus(part: str, version: str, say: Say = lambda _: None) -> Path:
    """The image `kumulus/PART:VERSION` of images/PART.Containerfile and the checkout as it is now, as an OCI archive."""
    with places.exclusive("containers"):
        _ensure_base(say)
        say(f"image kumulus/{part}:{version}")
        reference = f"localhost/kumulus/{part}:{version}"
        containerfile = places.CHECKOUT / "images" / f"{part}.Containerfile"
        with _trust() as mounts:
            _buildah(
                "bud", "--layers", "--pull-never", "--isolation", "chroot", "--network", "host", *mounts,
                f"--build-arg=BASE={_BASE}", f"--file={containerfile}", f"--tag={reference}", places.CHECKOUT,
            )  # fmt: skip
        return _archive(reference, f"docker.io/kumulus/{part}:{version}")


def program(name: str, files: dict[str, Path], command: list[str]) -> Path:
    """The image NAME with nothing but these files in it, as an OCI archive."""
    with places.exclusive("containers"):
        reference = f"localhost/{name}"
        container = _buildah("from", "scratch").strip()
        try:
            for target, source in files.items():
                _buildah("copy", "--chmod=0755", container, source, target)
            _buildah("config", f"--entrypoint={json.dumps(command)}", container)
            _buildah("commit", container, reference)
        finally:
            _buildah("rm", container)
        return _archive(reference, f"docker.io/{name}")


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


def _archive(reference: str, name: str) -> Path:
    """The image in a file, made once for each of its ids."""
    identity = _buildah("images", "--no-trunc", "--quiet", reference).split()[0]
    digest = hashlib.sha256(f"{identity} {name}".encode()).hexdigest()[:16]
    home = places.cache() / "containers"
    home.mkdir(parents=True, exist_ok=True)
    target = home / f"{name.rpartition('/')[2].replace(':', '-')}-{digest}.tar"
    if not target.exists():
        draft = target.with_suffix(".new")
        draft.unlink(missing_ok=True)
        _buildah("push", reference, f"oci-archive:{draft}:{name}")
        draft.rename(target)
    return target


def _buildah(*words: str | Path) -> str:
    store = places.cache() / "containers" / "store"
    own = ["--root", store, "--runroot", store.with_name("run"), "--storage-driver", "overlay"]
    try:
        return commands.run(["buildah", *own, *words], seconds=_SECONDS).stdout
    except LabError as error:
        raise LabError(f"an image could not be made: {error}") from error
