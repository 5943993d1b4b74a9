"""A real machine that counts on a disk which both hosts have, and who sees all that becomes of it.

Its guest writes a number, flushes it, and says it (`hack/images/tiny/init`). So a number that is said twice was counted by two guests,
or by one that went on with a memory older than its disk; and a guest that boots and finds less than was said has lost what it was told
is safe. That is all that its owner could notice of two runs, of a run of old memory, or of a lost write.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from kumulus.api.fabric import host_namespace
from kumulus_lab import deadline
from kumulus_lab.host import LibvirtHost
from kumulus_lab.lab import Lab
from kumulus_lab.processes import Identity, children
from tests.system.world import WORDS, Object, World

COMPUTE = "compute.kumulus.io/v1alpha1"
STORAGE = "storage.kumulus.io/v1alpha1"
SHARED = "/var/lib/kumulus/pools/shared"
"""A directory that all hosts of a lab have, also after they were off."""
NAME = "counts"
EVERY = 0.02
"""Seconds between two looks at hosts."""
SAID = re.compile(rb"kumulus-guest: (counted|found) (\d+)(?: on disk root)?\r?\n")


@dataclass
class Run:
    """The life of an emulator. Seconds of this machine's monotonic clock, at most `EVERY` and a little late."""

    host: str
    process: Identity
    began: float
    ended: float | None = None

    def __str__(self) -> str:
        return f"{self.host} {self.began:.2f} to {'now' if self.ended is None else format(self.ended, '.2f')}"


@dataclass
class _Console:
    """What is read of the log of one machine's console on one host, on, also when it is removed or another one takes its place."""

    path: Path
    file: BinaryIO | None = None
    rest: bytes = b""

    def read(self) -> bytes:
        """What came since."""
        said = self.file.read() if self.file is not None else b""
        with suppress(FileNotFoundError):
            now = self.path.stat()
            if self.file is None or (was := os.fstat(self.file.fileno())).st_ino != now.st_ino:
                self.close()
                self.file = self.path.open("rb")
                said += b"\n" + self.file.read()
            elif now.st_size < self.file.tell() and was.st_ino == now.st_ino:
                self.file.seek(0)
                said += b"\n" + self.file.read()
        text, newline, rest = (self.rest + said).rpartition(b"\n")
        self.rest = rest
        return text + newline

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class Watcher(threading.Thread):
    """Sees, all the time, what the guest of one machine says and where its emulators live."""

    def __init__(self, hosts: list[LibvirtHost], uid: str) -> None:
        super().__init__(daemon=True)
        self._hosts, self._uid = hosts, uid
        self._consoles = {
            host.name: _Console(host.state_directory / "instances" / uid / "console.log") for host in hosts
        }
        self._others: set[Identity] = set()
        self._over = threading.Event()
        self.runs: list[Run] = []
        self.wrong: list[str] = []
        """What must never be."""
        self._counted: dict[int, str] = {}
        """Where each number was said."""
        self.boots = 0
        """How often a guest looked for what was counted before: once a boot."""

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(EVERY):
            self._look()
        self._look()

    def stop(self) -> None:
        """It has seen all, and sees no more. Stopped already: nothing."""
        self._over.set()
        if self.is_alive():
            self.join()
        for console in self._consoles.values():
            console.close()

    def _look(self) -> None:
        now = time.monotonic()
        for run in self.runs:
            if run.ended is None and not run.process.alive():
                run.ended = now
        for host in self._hosts:
            self._emulators(host, now)
            self._read(host.name)

    def _emulators(self, host: LibvirtHost, now: float) -> None:
        init = host.daemon("init").identity()
        known = {run.process for run in self.runs if run.ended is None}
        for pid in children(init.pid) if init is not None else ():
            process = Identity.of(pid)
            if process is None or process in known or process in self._others:
                continue
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"qemu-system" not in words[0]:
                    continue  # it may be on its way to become one
                if any(self._uid.encode() in word for word in words):
                    self.runs.append(Run(host.name, process, now))
                else:
                    self._others.add(process)

    def _read(self, host: str) -> None:
        for what, number in SAID.findall(self._consoles[host].read()):
            value = int(number)
            if what == b"found":
                self.boots += 1
                if value < self.last:
                    self.wrong.append(f"{self.last} was safe, and a guest on {host} boots and finds {value}")
            elif value in self._counted:
                self.wrong.append(f"{value} was counted on {self._counted[value]}, and on {host} once more")
            self._counted.setdefault(value, host)

    @property
    def last(self) -> int:
        """The highest number that was said."""
        return max(self._counted, default=0)

    def living(self, host: str) -> list[Run]:
        """The emulators there."""
        return [run for run in self.runs if run.host == host and run.ended is None]

    def goes_on(self, more: int = 5, *, seconds: float = 60) -> None:
        """Return when it has counted so much further."""
        wanted = self.last + more
        deadline.until(lambda: self.last >= wanted, f"the guest's counting to {wanted}", seconds=seconds)

    def overlaps(self) -> list[str]:
        """Emulators that lived at the same time."""
        found = []
        for number, one in enumerate(self.runs):
            for other in self.runs[number + 1 :]:
                if min(_end(one), _end(other)) > max(one.began, other.began):
                    found.append(f"{one} and {other}")
        return found


def _end(run: Run) -> float:
    return float("inf") if run.ended is None else run.ended


@dataclass
class Scene:
    """A tenant whose machine counts, and the two hosts that can run it."""

    world: World
    pool: str
    watcher: Watcher = field(init=False)
    uid: str = field(init=False)

    @property
    def lab(self) -> Lab:
        """Where it is."""
        return self.world.lab

    def begin(self, *lines: str, **spec: Any) -> None:
        """The machine is there and counts."""
        volume = {"size": "64Mi", "pool": self.pool, "source": {"image": "tiny"}}
        self.world.apply({"apiVersion": STORAGE, "kind": "Volume", "metadata": {"name": NAME}, "spec": volume})
        root = {"name": "root", "volume": NAME}
        given = {"restartPolicy": "Always", "stop": {"mode": "Force"}, **spec}
        self.world.machine(NAME, "#kumulus-count-on: root", *lines, image=None, disks=[root], **given)
        self.uid = self.world.wait("vm", NAME, lambda vm: vm["metadata"]["uid"], "is there")["metadata"]["uid"]
        self.watcher = Watcher(self.lab.hosts, self.uid)
        self.watcher.start()
        self.world.phase(NAME, "Running", seconds=90)
        self.watcher.goes_on(seconds=90)

    def where(self) -> tuple[LibvirtHost, LibvirtHost]:
        """The host it is on, and the other one."""
        here = self.world.host_of(NAME)
        return here, next(host for host in self.lab.hosts if host.name != here.name)

    def move(self, name: str, **spec: Any) -> None:
        """Ask for a move."""
        kind = "VirtualMachineMigration"
        self.world.apply(
            {"apiVersion": COMPUTE, "kind": kind, "metadata": {"name": name}, "spec": {"vm": NAME, **spec}}
        )

    def migration(self, name: str, holds: Callable[[Object], object], what: str, *, seconds: float = 60) -> Object:
        """The status of a move, once that is so of it."""
        found: Object = self.world.wait("vmm", name, lambda item: holds(item["status"]), what, seconds=seconds)
        return dict(found["status"])

    def runs_once(self, *, seconds: float = 90) -> LibvirtHost:
        """Return, with its host, when it runs, counts, and nothing of it is anywhere else. AssertionError else."""
        last = ""

        def settled() -> LibvirtHost | None:
            nonlocal last
            vm = self.world.find("vm", NAME) or {"status": {}}
            status = vm["status"]
            about = {host.name: self.about(host) for host in self.lab.hosts}
            last = f"it is {status.get('phase')} on {status.get('host')}; {about}"
            if status.get("phase") != "Running":
                return None
            here = self.lab.host(status["host"])
            elsewhere = [line for name, lines in about.items() if name != here.name for line in lines]
            states = here.exec(["virsh", "-q", "list", "--state-running", "--uuid"], check=False).stdout.split()
            living = [run.host for run in self.watcher.runs if run.ended is None]
            return here if self.uid in states and not elsewhere and living == [here.name] else None

        try:
            here = deadline.until(settled, "one run of the machine, and nothing of it elsewhere", seconds=seconds)
        except Exception as error:
            raise AssertionError(f"{error}; {last}") from error
        self.watcher.goes_on()
        return here

    def about(self, host: LibvirtHost) -> list[str]:
        """What is of the machine on a host that is on: domains, emulators, files, orders."""
        listed = host.exec(["virsh", "-q", "list", "--all", "--uuid"], check=False).stdout.split()
        found = [f"domain {uid}" for uid in listed if uid == self.uid]
        found += [f"emulator {run}" for run in self.watcher.living(host.name)]
        found += [str(path) for path in (host.state_directory / "instances").glob(f"{self.uid}*")]
        orders = self.world.api.objects(WORDS["workorder"], host_namespace(host.name))
        return found + [f"order {item['metadata']['name']}" for item in orders if self.uid in item["metadata"]["name"]]

    def right(self) -> None:
        """Nothing was counted twice, and nothing that was safe is lost."""
        assert not self.watcher.wrong, "\n".join([*self.watcher.wrong, *map(str, self.watcher.runs)])

    def end(self) -> None:
        """Nothing of it is left."""
        if hasattr(self, "watcher"):
            self.watcher.stop()
        for kind in ("vmm", "vm", "vol"):
            for item in self.world.api.objects(WORDS[kind], self.world.namespace):
                self.world.delete(kind, item["metadata"]["name"])
        self.world.delete("storagepool", self.pool)


@contextmanager
def scene_on(world: World) -> Iterator[Scene]:
    """A pool that both hosts have, for one machine that counts; the hosts and controllers work again when it ends, whatever was done
    to them, and nothing is left."""
    name = f"shared-{secrets.token_hex(3)}"
    spec = {"driver": "dir", "parameters": {"path": SHARED, "shared": True}}
    world.apply({"apiVersion": STORAGE, "kind": "StoragePool", "metadata": {"name": name}, "spec": spec})
    made = Scene(world, name)
    try:
        world.wait("storagepool", name, lambda item: item["status"]["readyHosts"] == 2, "is ready on both hosts")
        yield made
    finally:
        try:
            restore(world.lab)
        finally:
            made.end()


def restore(lab: Lab) -> None:
    """All that a test may have ended or cut off is as it was."""
    lab.cluster.start()
    lab.services.start_controllers()
    for host in lab.hosts:
        host.heal()
        lab.start_host(host.name)
    lab.services.wait_for_hosts([host.name for host in lab.hosts])
