"""What a process costs, from /proc: CPU time, memory, children. Reads; never signals."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, of all its threads (proc(5), stat fields 14 and 15). 0 when it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    rss: int
    peak: int
    """VmHWM: the most it has ever been."""
    pss: int
    """Shared pages are split among those who share them."""

    @staticmethod
    def of(pid: int) -> Memory:
        """What a process has now. Raises FileNotFoundError when it is gone."""
        status = dict(_pairs(Path(f"/proc/{pid}/status").read_text()))
        rollup = dict(_pairs(Path(f"/proc/{pid}/smaps_rollup").read_text()))
        return Memory(rss=status.get("VmRSS", 0), peak=status.get("VmHWM", 0), pss=rollup.get("Pss", 0))


def _pairs(text: str) -> Iterable[tuple[str, int]]:
    for line in text.splitlines():
        found = re.match(r"^(\w+):\s+(\d+) kB$", line)
        if found:
            yield found[1], int(found[2]) * 1024


_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ ")


def pss_without_guest(pid: int, guest_bytes: int) -> int:
    """PSS of a QEMU less its guest's memory, which is the mapping that is at least as large as that."""
    total, size, pss = 0, 0, 0
    for line in [*Path(f"/proc/{pid}/smaps").read_text().splitlines(), "0-0 end"]:
        if _MAPPING.match(line):
            total += 0 if size >= guest_bytes else pss
            size = pss = 0
        elif line.startswith("Size:"):
            size = int(line.split()[1]) * 1024
        elif line.startswith("Pss:"):
            pss = int(line.split()[1]) * 1024
    return total


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    children = [int(child) for child in (task / "children").read_text().split()]
                    found += children
                    waiting += children
    return found


def name(pid: int) -> str:
    """The command's name; empty when it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def command_line(pid: int) -> str:
    """What it was started with; empty when it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


class Meter:
    """CPU seconds that named processes use between its making and `read`."""

    def __init__(self, pids: dict[str, list[int]]) -> None:
        self._pids = pids
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        return {label: sum(cpu_seconds(pid) for pid in pids) for label, pids in self._pids.items()}

    def read(self) -> dict[str, float]:
        """Seconds by name since it was made. Processes must have lived all along."""
        now = self._now()
        return {label: now[label] - self._before[label] for label in now}
