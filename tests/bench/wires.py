"""What the bench of networks asks of namespaces: sockets in them, guests that are plugged in by hand, traffic between them."""

from __future__ import annotations

import ctypes
import os
import random
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from kumulus_agents.network.protocol import Plug
from tests.bench.cloud import BenchError
from tests.contract.network_frames import TRUE
from tests.contract.network_world import CHECKOUT, Machine

PORT = 9
"""Where the frames go that `honest` makes."""
SECONDS = 10.0
_NEW_NET = 0x40000000
_TRAFFIC = str(CHECKOUT / "tests/bench/traffic.py")
_LIBC = ctypes.CDLL(None, use_errno=True)


def inside(machine: Machine, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket of another network namespace, which stays there. Made by a thread that goes there and ends."""
    made: Future[socket.socket] = Future()

    def go() -> None:
        try:
            there = os.open(f"/proc/{machine.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _LIBC.setns(there, _NEW_NET) != 0:
                    raise OSError(ctypes.get_errno(), f"{machine.name} cannot be entered")
            finally:
                os.close(there)
            made.set_result(make())
        except OSError as error:
            made.set_exception(error)

    threading.Thread(target=go, name="inside").start()
    return made.result(SECONDS)


def sender(machine: Machine) -> socket.socket:
    """Sends whole frames from the guest's interface."""

    def make() -> socket.socket:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind(("eth0", 0))
        raw.setblocking(False)
        return raw

    return inside(machine, make)


def receiver(machine: Machine) -> socket.socket:
    """Gets what honest frames carry."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", PORT))
        made.setblocking(False)
        return made

    return inside(machine, make)


def plug(host: Machine, guest: Machine, mac: str, into: Plug) -> None:
    """Do what a hypervisor does with a plug."""
    host.add_link(into.device, mtu=into.mtu, to=guest, peer=["name", "eth0", "address", mac])
    guest.run("ip", "link", "set", "dev", "eth0", "mtu", str(into.mtu), "up")
    host.run("ip", "link", "set", "dev", into.device, "master", into.bridge, "up")


def drain(sockets: Sequence[socket.socket]) -> None:
    """Forget what has arrived."""
    for each in sockets:
        try:
            while True:
                each.recv(2048)
        except BlockingIOError:
            continue


class Stream:
    """Sends frames, each every half a millisecond, and knows when each receiver got its first and its last one."""

    def __init__(self, source: socket.socket, frames: Sequence[bytes], receivers: Sequence[socket.socket]) -> None:
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        self._source, self._frames, self._receivers = source, frames, receivers
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream")
        drain(receivers)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def arrived(self) -> float:
        """When the last of all receivers got its first. Raises `BenchError` when one gets nothing."""
        deadline = time.perf_counter() + SECONDS
        while len(self.first) < len(self._receivers):
            if time.perf_counter() > deadline:
                raise BenchError("frames do not arrive")
            time.sleep(0.0002)
        return max(self.first.values())

    def silent(self, seconds: float = 0.05) -> float:
        """When the last frame arrived, after nothing has for so long. Raises `BenchError` when they go on."""
        deadline = time.perf_counter() + SECONDS
        while time.perf_counter() - max(self.last.values(), default=0.0) < seconds:
            if time.perf_counter() > deadline:
                raise BenchError("frames go on arriving")
            time.sleep(0.002)
        return max(self.last.values(), default=0.0)

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready:
            for number, each in enumerate(self._receivers):
                ready.register(each, selectors.EVENT_READ, number)
            while not self._end.is_set():
                for frame in self._frames:
                    try:
                        self._source.send(frame)
                    except OSError:
                        continue  # the device is down yet, or its queue is full
                for key, _ in ready.select(0.0005):
                    now = time.perf_counter()
                    if TRUE in self._receivers[key.data].recv(2048):
                        self.first.setdefault(key.data, now)
                        self.last[key.data] = now


class Way:
    """From one guest to another: two processes that stay, so that measurements can be short and take turns."""

    def __init__(self, source: Machine, target: Machine, address: str) -> None:
        """Raises `BenchError` when nothing answers."""
        python = [sys.executable, "-I", "-S", _TRAFFIC]
        self._server = target.start(*python, "serve")
        assert self._server.stdout
        ports = self._server.stdout.readline().split()
        self._client = source.start(*python, "ask", address, *ports)
        self.trip(10)

    def throughput(self, seconds: float) -> float:
        """Bytes a second of one TCP connection."""
        return self._ask("pour", seconds)

    def trip(self, times: int) -> float:
        """The median of as many round trips by UDP, in seconds."""
        return self._ask("trips", times)

    def _ask(self, what: str, much: float) -> float:
        assert self._client.stdin and self._client.stdout
        self._client.stdin.write(f"{what} {much}\n")
        self._client.stdin.flush()
        if not (said := self._client.stdout.readline()):
            raise BenchError("one of two guests has ended, or nothing passes between them")
        return float(said)

    def close(self) -> None:
        """End both processes."""
        for process in (self._client, self._server):
            process.kill()
            process.communicate()


def in_turns(ways: Sequence[Way], measure: Callable[[Way], float], turns: int) -> list[list[float]]:
    """What is measured of each way, a list a way; each turn has each once, in another order every time: a busy moment of the
    machine is longer than one measurement, and meets all alike."""
    found: list[list[float]] = [[] for _ in ways]
    order = list(range(len(ways)))
    for _ in range(turns):
        random.shuffle(order)
        for number in order:
            found[number].append(measure(ways[number]))
    return found
