"""What etcd keeps of a control plane with Kumulus installed: made once, and what labs of tests begin with a copy of.

Installing is the dearest part of a small lab: the API server works for seconds on kinds that come one after another, and
less on those that it finds when it starts. No private key and no token is in it: those are files of each lab. The
certificates of authorities that a control plane publishes as ConfigMaps are in it (`kube-root-ca.crt`,
`extension-apiserver-authentication`), those of the lab in which it was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kumulus_lab import binaries, places
from kumulus_lab.cluster import copy_data
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.processes import Identity
from kumulus_lab.state import Hypervisor

_KEPT = 8
"""So many checkouts may be tested in turn; one is a few megabytes."""
_INPUTS = (
    "crds/*.yaml",
    "charts/kumulus/manifests/*.yaml",
    "hack/lab/manifests/*.yaml",
    "hack/lab/kumulus_lab/cluster.py",
    "hack/lab/kumulus_lab/controlplane.py",
    "hack/lab/kumulus_lab/services.py",
    "operator/kumulus/cli/install.py",
)
"""What decides what is installed, and how it is kept."""


_LAB = "testkind"
"""Where it is made: of those that begin so tests take down what is left over."""


def own(lab: Lab) -> None:
    """Note in the directory of a lab of tests whose it is: while this process lives, others leave it."""
    identity = Identity.of(os.getpid())
    assert identity is not None
    lab.directory.mkdir(parents=True)
    (lab.directory / "owner.json").write_text(json.dumps({"pid": identity.pid, "started": identity.started}))


def key(programs: binaries.Binaries) -> str:
    """A digest of what is installed, by what, and of the programs that keep it."""
    digest = hashlib.sha256()
    for pattern in _INPUTS:
        found = sorted(places.CHECKOUT.glob(pattern))
        if not found:
            raise LabError(f"{places.CHECKOUT} has no {pattern}")
        for path in found:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for program in (programs.etcd, programs.apiserver):
        facts = program.stat()
        digest.update(f"{program} {facts.st_size} {facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]


def ensure(say: Callable[[str], None] = lambda _: None) -> Path:
    """The directory of etcd, for `Lab(data=...)`; made when the cache has none for today's kinds."""
    home = places.cache() / "installed" / key(binaries.ensure(say))
    if not home.exists():
        with places.exclusive("installed"):
            if not home.exists():
                say("a control plane with Kumulus installed, for labs to begin with")
                _make(home)
    home.touch()
    return home


def _make(home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    for leftover in home.parent.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    lab = Lab(_LAB)
    with places.exclusive("test-labs"):
        lab.down()  # where it was cut, the last time
        own(lab)
    try:
        lab.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, controllers=False, agents=False))
        lab.services.install()
        lab.cluster.stop()
        draft = home.with_name(f".{home.name}")
        copy_data(lab.cluster.data, draft)
        _flush(draft)
        draft.rename(home)
    finally:
        lab.down()
    known = sorted(home.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in known[:-_KEPT]:
        with suppress(OSError):
            shutil.rmtree(old)


def _flush(draft: Path) -> None:
    """What is in the directory is on the disk: whoever finds it later finds all of it."""
    for path in (*draft.rglob("*"), draft):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
