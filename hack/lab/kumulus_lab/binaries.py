"""The Kubernetes programs the lab runs: found, downloaded or built, in this order.

`$KUBEBUILDER_ASSETS`, the cache, the official download, a build from the Go modules pinned in hack/kubernetes.
The cache is filled by one rename, so a cut download or build is never used.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kumulus_lab import places
from kumulus_lab.errors import LabError

VERSION = "1.34.4"
DOWNLOAD = "https://dl.k8s.io"
"""Where Kubernetes publishes its binaries and their checksums; `$KUMULUS_KUBERNETES_DOWNLOAD` overrides it."""

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
_PACKAGES = {
    "etcd": "./etcd",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
}
_SOURCES = places.CHECKOUT / "hack" / "kubernetes"
_CONNECT_SECONDS = 4

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where each program is."""

    etcd: Path
    apiserver: Path
    controller_manager: Path
    kubectl: Path


def cached() -> Path:
    """The directory of the cache for this version of Kubernetes and of the files that pin it."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "etcd/main.go"):
        digest.update((_SOURCES / name).read_bytes())
    return places.cache() / "kubernetes" / f"v{VERSION}-{digest.hexdigest()[:12]}"


def ensure(say: Say = lambda _: None) -> Binaries:
    """All programs, ready to run. `say` hears of what takes long. Raises LabError when there is no way to them."""
    found = _ensure(NAMES, say)
    return Binaries(
        etcd=found["etcd"],
        apiserver=found["kube-apiserver"],
        controller_manager=found["kube-controller-manager"],
        kubectl=found["kubectl"],
    )


def kube_proxy(say: Say = lambda _: None) -> Path:
    """The program that sends what comes for a Service to its endpoints: no lab has it, who plays a node asks for it.

    Raises LabError as `ensure` does; takes about ten seconds to build where the others were built.
    """
    return _ensure(("kube-proxy",), say)["kube-proxy"]


def _ensure(names: Sequence[str], say: Say) -> dict[str, Path]:
    """Programs by name, each got once."""
    found = _found(names)
    if len(found) < len(names):
        with places.exclusive("kubernetes"):
            missing = [name for name in names if name not in _found(names)]
            if missing:
                _fill(missing, say)
        found = _found(names)
    return found


def _found(names: Sequence[str]) -> dict[str, Path]:
    """What is there already of these programs."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    given = [Path(assets)] if assets else []
    found: dict[str, Path] = {}
    for directory in (*given, cached()):
        for name in names:
            if os.access(directory / name, os.X_OK):
                found.setdefault(name, directory / name)
    return found


def _fill(missing: list[str], say: Say) -> None:
    """Put what is missing into the cache, each program by one rename."""
    directory = cached()
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".partial-") as partial:
        _fetch(missing, Path(partial), say)
        for name in missing:
            (Path(partial) / name).rename(directory / name)


def _fetch(names: list[str], into: Path, say: Say) -> None:
    """Put the programs into a directory: downloaded when they can be, else built."""
    build = [name for name in names if name == "etcd"]
    wanted = [name for name in names if name != "etcd"]
    for number, name in enumerate(wanted):
        try:
            _download(name, into, say)
        except (urllib.error.URLError, TimeoutError, ConnectionError, LabError) as error:
            say(f"no download of Kubernetes from {_base()} ({_why(error)})")
            build += wanted[number:]
            break
    if build:
        _build(build, into, say)


def _base() -> str:
    return os.environ.get("KUMULUS_KUBERNETES_DOWNLOAD", DOWNLOAD).rstrip("/")


def _why(error: BaseException) -> str:
    return str(getattr(error, "reason", error)) or type(error).__name__


def _download(name: str, into: Path, say: Say) -> None:
    """One program, checked against the published SHA-256 while it arrives."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    url = f"{_base()}/release/v{VERSION}/bin/linux/{machine}/{name}"
    if not url.startswith("https://"):
        raise LabError(f"{url} is not https; set KUMULUS_KUBERNETES_DOWNLOAD to an https address")
    with urllib.request.urlopen(f"{url}.sha256", timeout=_CONNECT_SECONDS) as answer:  # noqa: S310
        expected = answer.read(200).decode().split()[0]
    say(f"downloading {name} {VERSION}")
    digest = hashlib.sha256()
    target = into / name
    with urllib.request.urlopen(url, timeout=30) as answer, target.open("wb") as file:  # noqa: S310
        while chunk := answer.read(1 << 20):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != expected:
        target.unlink()
        raise LabError(f"{url} does not match its published checksum")
    target.chmod(0o755)


def _build(names: list[str], into: Path, say: Say) -> None:
    """Build from Go modules; about five minutes on two cores when nothing is in Go's own cache."""
    go = shutil.which("go")
    if go is None:
        raise LabError(
            "the Kubernetes programs " + ", ".join(names) + " are neither here nor to be downloaded, and there is no Go"
            " to build them: install Go 1.24 or later, or point KUBEBUILDER_ASSETS at a directory that has them"
        )
    log = places.cache() / "kubernetes" / "build.log"
    major, minor, _ = VERSION.split(".")
    version = "k8s.io/component-base/version"
    stamp = f"-X {version}.gitVersion=v{VERSION} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    with log.open("w") as output:
        for name in names:
            say(f"building {name} {VERSION} from Go modules (log: {log})")
            done = subprocess.run(
                [go, "build", "-trimpath", "-ldflags", f"-s -w {stamp}", "-o", str(into / name), _PACKAGES[name]],
                cwd=_SOURCES,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if done.returncode != 0:
                last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise LabError(f"building {name} failed; its log is {log}:\n{last}")
