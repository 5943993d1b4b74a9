"""The agent's side of metadata: has the server run, hands it a socket in each network's namespace, writes what it says.

The server runs when the first network comes and ends when the last one goes. It is left alone when the agent ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.metadata.line import CONTROL, Line
from kumulus_agents.metadata.records import NicRecord, Records, SubnetRecord
from kumulus_agents.metadata.settings import MetadataSettings
from kumulus_agents.storage.blocking import in_thread

log = structlog.get_logger(__name__)

ADDRESS, PORT = "169.254.169.254", 80
NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000
IP_FREEBIND = 15
START_SECONDS = 10.0


class Metadata:
    """Of one host. Verbs may be repeated; what cannot be done is in the log and is tried again with the next `sync`. Only
    `sync` waits for the server."""

    def __init__(self, root: Path, settings: MetadataSettings) -> None:
        self._root = root
        self._uid = settings.uid
        self._records = Records(root, settings.uid)
        self._writing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._complaint = ""

    async def put_machine(self, uid: str, namespace: str, name: str, seed: Mapping[str, bytes]) -> None:
        """A machine is about to start with that first-boot data."""
        await self._write(lambda: self._records.put_machine(uid, namespace, name, seed))

    async def put_nic(self, machine: str, nic: Nic, segment: SegmentOrder) -> None:
        """The machine has that interface, in that network."""
        record = NicRecord(
            name=nic.name,
            network=nic.network,
            mac=nic.mac,
            addresses=nic.addresses,
            dhcp=segment.dhcp,
            subnets=_subnets(segment),
        )
        await self._write(lambda: self._records.put_nic(machine, nic.uid, record))

    async def put_network(self, segment: SegmentOrder) -> None:
        """The network is so from now on: guests that have interfaces in it are told so."""
        subnets = _subnets(segment)
        await self._write(lambda: self._records.put_network(segment.uid, dhcp=segment.dhcp, subnets=subnets))

    async def drop_nic(self, uid: str) -> None:
        """The interface is gone."""
        await self._write(lambda: self._records.drop_nic(uid))

    async def drop_machine(self, uid: str) -> None:
        """The machine is gone."""
        await self._write(lambda: self._records.drop_machine(uid))

    async def drop_network(self, uid: str) -> None:
        """The network is gone."""
        await self._write(lambda: self._records.drop_network(uid))

    async def keep_machines(self, uids: Collection[str]) -> None:
        """There are no others."""
        await self._write(lambda: self._records.keep_machines(uids))

    async def sync(self, networks: Collection[str], *, complete: bool) -> None:
        """Have the server answer in these networks, as far as they have a namespace, and, when they are `complete`, in no
        others."""
        async with self._syncing:
            try:
                await in_thread(self._sync, frozenset(networks), complete)
            except (OSError, ValueError) as error:
                if str(error) != self._complaint:
                    log.warning("metadata not served everywhere", error=str(error))
                self._complaint = str(error)
            else:
                self._complaint = ""

    async def _write(self, work: Callable[[], None]) -> None:
        async with self._writing:
            await in_thread(self._records.prepare)
            await in_thread(work)

    def _sync(self, networks: frozenset[str], complete: bool) -> None:
        wanted = {uid: inode for uid in networks if (inode := _inode(uid)) is not None}
        line = self._line()
        if line is None:
            if not wanted:
                return
            self._records.prepare()
            line = self._started()
        try:
            has = line.networks()
            if complete and not wanted:
                line.stop()
            for uid in has.keys() - wanted.keys() if complete and wanted else ():
                line.drop(uid)
            for uid, inode in wanted.items():
                if has.get(uid) != inode:
                    with listener_in(NAMESPACES / namespace(uid)) as listener:
                        line.add(uid, inode, listener)
        finally:
            line.close()

    def _line(self) -> Line | None:
        with contextlib.suppress(OSError):
            return Line(self._root / CONTROL)
        return None

    def _started(self) -> Line:
        argv = [sys.executable, "-P", "-m", "kumulus_agents.metadata", str(self._root), str(self._uid)]
        log_file = os.open(self._root / "server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                cwd="/",
                env={},
            )
        finally:
            os.close(log_file)
        # Reaped when it ends before this process does; without, it would stay a zombie.
        threading.Thread(target=process.wait, daemon=True).start()
        end = time.monotonic() + START_SECONDS
        while (line := self._line()) is None:
            if time.monotonic() > end:
                raise OSError(f"the metadata server did not start; see {self._root}/server.log")
            time.sleep(0.02)
        return line


def _subnets(segment: SegmentOrder) -> tuple[SubnetRecord, ...]:
    return tuple(SubnetRecord(cidr=one.cidr, gateway=one.gateway, service=one.service) for one in segment.subnets)


def namespace(network: str) -> str:
    """Name of the network namespace that serves a network."""
    return f"kumulus-{network}"


def listener_in(path: Path) -> socket.socket:
    """A socket that listens for guests in that network namespace. Raises `OSError`."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        # A thread of its own is in that namespace; nothing else of this process is.
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"cannot enter {path}")
            finally:
                os.close(descriptor)
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
                listener.bind((ADDRESS, PORT))
                listener.listen(64)
            except OSError:
                listener.close()
                raise
            made.append(listener)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (found,) = made
    if isinstance(found, OSError):
        raise found
    return found


def _inode(network: str) -> int | None:
    try:
        return (NAMESPACES / namespace(network)).stat().st_ino
    except FileNotFoundError:
        return None
