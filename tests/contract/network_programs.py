"""Programs that tests run in guests: who sends frames, who sees them, who talks and who answers. Context managers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.contract.network_world import CHECKOUT, SECONDS, Guest, Host, Machine
from tests.patience import PATIENCE

_FRAMES = str(CHECKOUT / "tests/contract/network_frames.py")
_PROBE = str(CHECKOUT / "tests/contract/network_probe.py")
_TALK = str(CHECKOUT / "tests/contract/network_talk.py")
_BRIEFLY = 1.0


class Within:
    """A network namespace of a host, in the place of a guest."""

    def __init__(self, host: Host, namespace: str) -> None:
        self._host, self._namespace = host, namespace
        self.machine = self

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return self._host.machine.start("ip", "netns", "exec", self._namespace, *argv)


@dataclass
class Wired:
    """Somebody on a wire, in the place of a guest."""

    machine: Machine


class Program:
    """A program in a guest that is told lines and answers with lines."""

    def __init__(self, guest: Guest | Within | Wired, *argv: str) -> None:
        self._process = guest.machine.start(sys.executable, "-I", "-S", *argv)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def tell(self, line: str = "") -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(self._process.stderr.read() if self._process.stderr else "it is gone")
        return line.strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


class Sender(Program):
    """Sends frames over and over, with so many ms between."""

    def __init__(
        self, guest: Guest | Within | Wired, frames: Sequence[bytes], device: str = "eth0", *, pause: int = 1
    ) -> None:
        super().__init__(guest, _FRAMES, "send", device, str(pause))
        self.sent = 0
        for frame in frames:
            self.tell(frame.hex())
        self.tell()

    def close(self) -> None:
        """Stop, and know how many it sent."""
        if self._process.poll() is None:
            assert self._process.stdin
            self._process.stdin.close()  # a line could be read along with the frames, and never be noticed
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=SECONDS * PATIENCE)
            assert self._process.stdout
            self.sent = int(self._process.stdout.readline() or 0)
        super().close()


class Watcher(Program):
    """Sees frames."""

    def __init__(self, guest: Guest | Within, device: str = "eth0") -> None:
        super().__init__(guest, _FRAMES, "see", device)
        self.examples: list[str] = []
        assert self.hear() == "seeing"

    def seen(self) -> tuple[int, int]:
        """How many honest and how many false ones."""
        self.tell()
        honest, false, *self.examples = self.hear().split()
        return int(honest), int(false)


class Tags(Program):
    """Sees which senders have which VLANs."""

    def __init__(self, guest: Guest | Within | Wired, device: str = "eth0") -> None:
        super().__init__(guest, _FRAMES, "list", device)
        assert self.hear() == "seeing"

    def of(self, mac: str) -> set[int]:
        """The VLANs that frames of that sender had; 0 is none."""
        self.tell()
        seen = [word.split("/") for word in self.hear().split()[1:]]
        return {int(vlan) for sender, vlan in seen if sender == mac}


class Server(Program):
    """Answers on ports, what it hears."""

    def __init__(self, guest: Guest, *ports: int) -> None:
        super().__init__(guest, _TALK, "serve")
        for port in ports:
            self.tell(str(port))
            assert self.hear() == "serving"


class Teller(Program):
    """Says something to one that connects, over and over."""

    def __init__(self, guest: Guest, port: int) -> None:
        super().__init__(guest, _TALK, "tell", str(port))
        assert self.hear() == "telling"


class Listener(Program):
    """Connects, and says nothing on that connection."""

    def __init__(self, guest: Guest, address: str, port: int) -> None:
        super().__init__(guest, _TALK, "hear", address, str(port))
        assert self.hear() == "connected"

    def heard(self) -> int:
        """How often it was told something."""
        self.tell()
        return int(self.hear())


class Probe(Program):
    """New connections to servers, many at once."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest, _PROBE)

    def work(self, wanted: Sequence[tuple[str, int, bool]]) -> list[bool]:
        """Which work; each is address, port, and whether it is UDP."""
        for address, port, udp in wanted:
            self.tell(f"{address} {port}{' udp' if udp else ''}")
        self.tell()
        return [word == "1" for word in self.hear().split()]


class Talk(Program):
    """A connection to a server. What shall come back is waited for; what shall not has a second."""

    def __init__(
        self,
        guest: Guest,
        address: str,
        port: int,
        *,
        udp: bool = False,
        source: int = 0,
        size: int = 0,
        seconds: float = SECONDS * PATIENCE,
    ) -> None:
        """`source`: its own port; `size`: how much more each line has, in bytes."""
        more = [f"from={source}", f"size={size}", *(["udp"] if udp else [])]
        super().__init__(guest, _TALK, "talk", address, str(port), str(seconds), *more)
        self.connected = self.hear() == "connected"

    def works_on(self) -> bool:
        """Whether something comes back."""
        return self._comes_back(SECONDS * PATIENCE)

    def is_cut(self) -> bool:
        """Whether nothing comes back."""
        return not self._comes_back(_BRIEFLY)

    def _comes_back(self, seconds: float) -> bool:
        if not self.connected:
            return False
        self.tell(str(seconds))
        return self.hear() == "came back"

    @classmethod
    def works(cls, guest: Guest, address: str, port: int) -> bool:
        """Whether a new connection works."""
        with cls(guest, address, port) as talk:
            return talk.works_on()

    @classmethod
    def fails(cls, guest: Guest, address: str, port: int, *, udp: bool = False) -> bool:
        """Whether a new connection does not work."""
        with cls(guest, address, port, udp=udp, seconds=_BRIEFLY) as talk:
            return talk.is_cut()
