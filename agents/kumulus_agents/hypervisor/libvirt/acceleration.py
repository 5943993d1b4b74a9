"""Whether guests can really run on the hardware: by running one.

/dev/kvm may exist and be useless (a nested KVM that emulates half a CPU), so what counts is that a
guest gets through: real mode, protected mode, long mode with paging, `iret` in both, SSE2.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

from kumulus_agents.hypervisor.libvirt.domain_xml import KVM, TCG

SECONDS = 5
"""Longer than any working host takes (0.1 s)."""

DOUBT_SECONDS = 3600
"""How long it holds that there is none."""

SECTOR = 512
PORT = 0xF4
PASSED = 0x10 * 2 + 1
"""QEMU's exit status when the guest has written 0x10 to the `isa-debug-exit` port; a reset would give 0."""

PROGRAM = bytes.fromhex(
    # 16 bit: page tables at 0x1000 (one page of 2 MiB), GDT, protected mode
    "fa31c08ed88ec08ed0bc007cbf0010b90018f3abc70600100320c70600200330c70600308300660f0116d87c0f20c00c010f22c0"
    "ea397c0800"
    # 32 bit: stack, iretd, PAE and SSE in CR4, CR3, EFER.LME, paging, long mode
    "66b810008ed88ed0bc007c00009c6a08684f7c0000cf0f20e00d200600000f22e0b8001000000f22d8b9800000c00f320d00010000"
    "0f300f20c00d000000800f22c0ea827c00001800"
    # 64 bit: iretq, eax = 0x10 through xmm0 and paddd, out al to 0xf4, then hlt for ever
    "48c7c4007c00006a1068007c00009c6a18689a7c000048cfb810000000660f6ec0660fefc9660ffec1660f7ec0e6f4f4ebfd"
    "0f1f4000"
    # GDT: null, code 32, data, code 64; its limit and address
    "0000000000000000ffff0000009acf00ffff00000092cf00ffff0000009aaf001f00b87c0000"
)
"""A boot sector, linked at 0x7c00. Assembled with GNU as; the comments say what each part does."""


def probe(emulator: str, device: Path = Path("/dev/kvm"), *, memory: Path | None = None) -> str:
    """`kvm` if a guest runs to its end with it, else `tcg`. Blocks for a fraction of a second, at most 5 s.

    An answer is kept in the file `memory` for the same emulator and device, for a device that is of no use costs a
    processor these 5 s each time. That there is no acceleration holds for an hour: the host may just have been busy. That
    the file cannot be read or written, or nothing could be run, changes nothing else.
    """
    if not device.exists():
        return TCG
    asked = f"{_identity(Path(emulator))} {_identity(device)}"
    if memory is not None and (answer := _recall(memory, asked)) is not None:
        return answer
    try:
        answer = KVM if runs(emulator, KVM, "host") else TCG
    except OSError:
        return TCG
    if memory is not None:
        _keep(memory, f"{asked} {answer}")
    return answer


def _recall(memory: Path, asked: str) -> str | None:
    try:
        known, _, answer = memory.read_text().rpartition(" ")
        age = time.time() - memory.stat().st_mtime
    except (OSError, ValueError):
        return None
    if known != asked or answer not in (KVM, TCG) or (answer == TCG and not 0 <= age <= DOUBT_SECONDS):
        return None
    return answer


def _keep(memory: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = memory.with_name(f"{memory.name}.{os.getpid()}")
        fresh.write_text(text)
        fresh.rename(memory)


def _identity(file: Path) -> str:
    """That of the file as it is now, and of none when there is none."""
    with contextlib.suppress(OSError):
        found = file.stat()
        return f"{file}:{found.st_dev}:{found.st_ino}:{found.st_ctime_ns}"
    return f"{file}:none"


def runs(emulator: str, acceleration: str, cpu: str) -> bool:
    """Whether a guest gets to the end of the program. Raises OSError when nothing can be run."""
    with tempfile.NamedTemporaryFile(prefix="kumulus-probe-") as disk:
        disk.write(PROGRAM.ljust(SECTOR - 2, b"\0") + b"\x55\xaa")
        disk.truncate(1 << 20)
        disk.flush()
        # An agent that is killed meanwhile leaves no emulator behind that runs for ever.
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            emulator,
            "-machine",
            f"q35,accel={acceleration}",
            "-cpu",
            cpu,
            "-m",
            "16",
        ]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-sandbox", "on", "-drive", f"file={disk.name},format=raw,if=virtio,readonly=on"]
        command += ["-device", f"isa-debug-exit,iobase={PORT:#x},iosize=4"]
        try:
            return subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).returncode == PASSED
        except subprocess.TimeoutExpired:
            return False
