"""What etcd keeps of a control plane with Kumulus installed: made once, and what labs of tests begin with a copy of.

Installing is the dearest part of a small lab: the API server works for seconds on kinds that come one after another, and
less on those that it finds when it starts. No certificate, key or token is in it: those are files of each lab.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kumulus_lab import binaries, places
from kumulus_lab.cluster import copy_data
from kumulus_lab.errors import LabError
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor

_KEPT = 8
"""So many checkouts may be tested in turn; one is a few megabytes."""
_INPUTS = (
    "crds/*.yaml",
    "charts/kumulus/manifests/*.yaml",
    "hack/lab/manifests/*.yaml",
    "hack/lab/kumulus_lab/cluster.py",
    "operator/kumulus/cli/install.py",
)
"""What decides what is installed, and how it is kept."""


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
    lab = Lab("kinds")
    lab.down()  # where it was cut, the last time
    try:
        lab.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, controllers=False, agents=False))
        lab.services.install()
        lab.cluster.stop()
        draft = home.with_name(f".{home.name}")
        copy_data(lab.cluster.data, draft)
        draft.rename(home)
    finally:
        lab.down()
    known = sorted(home.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in known[:-_KEPT]:
        with suppress(OSError):
            shutil.rmtree(old)
