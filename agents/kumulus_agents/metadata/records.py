"""What is known of the guests of a host for their metadata, in files that the agent writes and the server reads.

`machines/<uid>.json` has a machine, `networks/<uid>/<address>` says whose address that is in that network, `nics/<uid>.json`
which addresses were written for an interface. Each is written whole and renamed. The server's group may read them, and
nobody else: first-boot data has secrets. Names derive from uids and addresses, both checked when an order was read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

MACHINES, NETWORKS, NICS = "machines", "networks", "nics"
REMEMBERED = 256
"""Machines whose files a reader has in mind."""


class SubnetRecord(BaseModel):
    """A range of a network."""

    model_config = ConfigDict(frozen=True)

    cidr: str
    gateway: str | None = None
    service: str


class NicRecord(BaseModel):
    """An interface."""

    model_config = ConfigDict(frozen=True)

    name: str
    network: str
    """Uid of the network."""
    mac: str
    addresses: tuple[str, ...] = ()
    dhcp: bool = True
    """Whether the network tells guests their addresses; else they have to set them."""
    subnets: tuple[SubnetRecord, ...] = ()


class MachineRecord(BaseModel):
    """A machine. `seed` has the files of its first-boot data, such as `user-data`."""

    model_config = ConfigDict(frozen=True)

    uid: str
    namespace: str
    name: str
    seed: Mapping[str, str] = {}
    nics: Mapping[str, NicRecord] = {}
    """By uid."""


class Records:
    """Writes them. One writer a host; every method may be repeated, and calls block for as long as small files do."""

    def __init__(self, root: Path, group: int) -> None:
        self._root = root
        self._group = group
        self._network_of: dict[str, str] | None = None
        """By uid of an interface; None: not looked up yet."""
        self._told: dict[str, tuple[bool, tuple[SubnetRecord, ...]]] = {}
        """By network, what all its interfaces are told."""

    def prepare(self) -> None:
        """Have the directories."""
        for place in ("", MACHINES, NETWORKS, NICS):
            self._directory(self._root / place)

    def put_machine(self, uid: str, namespace: str, name: str, seed: Mapping[str, bytes]) -> None:
        """A machine is about to start; its interfaces are kept."""
        before = self._machine(uid)
        texts = {key: value.decode(errors="replace") for key, value in seed.items()}
        self._write_machine(
            MachineRecord(uid=uid, namespace=namespace, name=name, seed=texts, nics=before.nics if before else {})
        )

    def put_nic(self, machine: str, uid: str, nic: NicRecord) -> None:
        """The machine has the interface; its addresses ask for that machine from now on."""
        addresses = sorted({_plain(address) for address in nic.addresses})
        if self._network_of is not None:
            self._network_of[uid] = nic.network
        if self._told.get(nic.network) != (nic.dhcp, nic.subnets):
            self._told.pop(nic.network, None)
        network = self._root / NETWORKS / nic.network
        old = self._read(self._root / NICS / f"{uid}.json")
        wanted = {"machine": machine, "network": nic.network, "addresses": addresses}
        known = self._machine(machine)
        there = all((network / address).exists() for address in addresses)
        if old == wanted and there and known is not None and known.nics.get(uid) == nic:
            return
        if old is not None and old != wanted:
            self._forget(uid, old, keep=addresses if old["network"] == nic.network else ())
        self._write(self._root / NICS / f"{uid}.json", wanted)
        self._directory(network)
        for address in addresses:
            self._write(network / address, {"machine": machine, "nic": uid})
        if known is not None:
            self._write_machine(known.model_copy(update={"nics": {**known.nics, uid: nic}}))

    def put_network(self, uid: str, *, dhcp: bool, subnets: tuple[SubnetRecord, ...]) -> None:
        """What interfaces that are known are told of their network."""
        if self._told.get(uid) == (dhcp, subnets):
            return
        for each in self._nics_in(uid):
            known = self._read(self._root / NICS / f"{each}.json")
            if known is None or known["network"] != uid:
                continue
            machine = self._machine(known["machine"])
            nic = machine.nics.get(each) if machine is not None else None
            if machine is None or nic is None or (nic.dhcp, nic.subnets) == (dhcp, subnets):
                continue
            nic = nic.model_copy(update={"dhcp": dhcp, "subnets": subnets})
            self._write_machine(machine.model_copy(update={"nics": {**machine.nics, each: nic}}))
        self._told[uid] = (dhcp, subnets)

    def drop_nic(self, uid: str) -> None:
        """The interface is gone."""
        path = self._root / NICS / f"{uid}.json"
        if (old := self._read(path)) is None:
            return
        self._forget(uid, old)
        machine = self._machine(old["machine"])
        if machine is not None and uid in machine.nics:
            nics = {key: nic for key, nic in machine.nics.items() if key != uid}
            self._write_machine(machine.model_copy(update={"nics": nics}))
        path.unlink(missing_ok=True)
        if self._network_of is not None:
            self._network_of.pop(uid, None)

    def drop_machine(self, uid: str) -> None:
        """The machine is gone."""
        (self._root / MACHINES / f"{uid}.json").unlink(missing_ok=True)

    def drop_network(self, uid: str) -> None:
        """The network is gone."""
        self._told.pop(uid, None)
        directory = self._root / NETWORKS / uid
        with contextlib.suppress(FileNotFoundError):
            for path in directory.iterdir():
                path.unlink(missing_ok=True)
            directory.rmdir()

    def keep_machines(self, uids: Collection[str]) -> None:
        """Nothing is known of other machines."""
        with contextlib.suppress(FileNotFoundError):
            for path in (self._root / MACHINES).glob("*.json"):
                if path.stem not in uids:
                    path.unlink(missing_ok=True)

    def _nics_in(self, network: str) -> list[str]:
        """Interfaces of the network. All files are read once, for this is the one writer."""
        if self._network_of is None:
            there = {path.stem: self._read(path) for path in (self._root / NICS).glob("*.json")}
            self._network_of = {uid: str(known["network"]) for uid, known in there.items() if known is not None}
        return sorted(uid for uid, its in self._network_of.items() if its == network)

    def _forget(self, uid: str, old: Mapping[str, Any], keep: Iterable[str] = ()) -> None:
        directory, kept = self._root / NETWORKS / old["network"], set(keep)
        for address in old["addresses"]:
            said = self._read(directory / address)
            if address not in kept and said is not None and said.get("nic") == uid:
                (directory / address).unlink(missing_ok=True)

    def _machine(self, uid: str) -> MachineRecord | None:
        raw = self._read(self._root / MACHINES / f"{uid}.json")
        return None if raw is None else MachineRecord.model_validate(raw)

    def _write_machine(self, record: MachineRecord) -> None:
        self._write(self._root / MACHINES / f"{record.uid}.json", record.model_dump(mode="json"))

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        draft = path.with_name(f".{path.name}.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "w") as file:
            os.fchown(descriptor, -1, self._group)
            os.fchmod(descriptor, 0o640)
            json.dump(content, file)
        draft.rename(path)

    def _directory(self, path: Path) -> None:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        os.chown(path, -1, self._group)


class Reader:
    """Reads them, as the server does: below a directory that was opened, so that it needs no way to it."""

    def __init__(self, root: int) -> None:
        """`root` is a descriptor of the directory."""
        self._root = root
        self._machines: OrderedDict[str, tuple[tuple[int, ...], MachineRecord]] = OrderedDict()

    def machine_at(self, network: str, address: str) -> MachineRecord | None:
        """Whose address that is in the network; the very same object as long as its file is the same. None: nobody's, or
        nothing is known of the machine."""
        try:
            with self._open(f"{NETWORKS}/{network}/{_plain(address)}") as file:
                uid = str(json.load(file)["machine"])
            with self._open(f"{MACHINES}/{uid}.json") as file:
                state = os.fstat(file.fileno())
                which = (state.st_ino, state.st_mtime_ns, state.st_size)
                known = self._machines.pop(uid, None)
                if known is None or known[0] != which:
                    known = (which, MachineRecord.model_validate(json.load(file)))
        except FileNotFoundError:
            return None
        self._machines[uid] = known
        if len(self._machines) > REMEMBERED:
            self._machines.popitem(last=False)
        return known[1]

    def _open(self, path: str) -> BinaryIO:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root), "rb")


def _plain(address: str) -> str:
    return str(ipaddress.ip_address(address.partition("%")[0]))
