"""Runs a command on another kernel: the distribution's, in a virtual machine whose files are those of this machine.

For what a kernel must have and this one has not. QEMU emulates the machine, so it needs no KVM; it sees all files of
this machine, and what it writes stays in its memory. Needs root, `linux-image-cloud-amd64`, `busybox-static`, `cpio` and
QEMU with its virtiofsd.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from tests.patience import PATIENCE

CHECKOUT = Path(__file__).parents[2]

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
MEMORY = "3G"
EXIT = "KERNEL-EXIT:"

_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for m in {modules}; do insmod /modules/$m; done
mount -t virtiofs -o ro machine /lower && mount -t tmpfs -o size=90% over /over && mkdir /over/upper /over/work &&
mount -t overlay -o lowerdir=/lower,upperdir=/over/upper,workdir=/over/work over /root || echo {exit}255
mount --move /dev /root/dev; mount -t proc proc /root/proc; mount -t sysfs sys /root/sys; mount -t tmpfs run /root/run
umount /proc /sys
exec switch_root /root /bin/sh {script}
"""

_SCRIPT = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mkdir -p /dev/shm /dev/pts; ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin; ln -s fd/1 /dev/stdout
mount -t tmpfs shm /dev/shm; mount -t devpts pts /dev/pts; mount -t cgroup2 cg /sys/fs/cgroup
ip link set lo up; modprobe -a loop
[ ! -x /lib/systemd/systemd-udevd ] || /lib/systemd/systemd-udevd --daemon
cd {directory} && {command} </dev/null 2>&1
echo {exit}$?
echo o >/proc/sysrq-trigger
sleep 60
"""


@dataclass(frozen=True)
class Ended:
    """How the command ended."""

    status: int
    """255: the machine did not come so far."""
    said: str


def why_none() -> str | None:
    """Why there can be no such machine, in a sentence; None when it can."""
    if os.geteuid() != 0:
        return "Only root can run a machine that sees all files of this one."
    if _version() is None:
        return "There is no kernel to boot: linux-image-cloud-amd64 is not installed."
    missing = [name for name in ("qemu-system-x86_64", "cpio", "modprobe") if shutil.which(name) is None]
    missing += [str(path) for path in (VIRTIOFSD, Path("/bin/busybox")) if not path.exists()]
    return f"There is no {', '.join(missing)} here." if missing else None


def run_tests(scratch: Path, *selection: str, seconds: float) -> None:
    """Run tests of this checkout on the other kernel, as pytest selects them: all of them have to pass, none may skip.
    Raises AssertionError with what they said."""
    options = ["-p", "no:cacheprovider", "-n", "0", "--basetemp=/run/tests", "-o", "timeout=900", "--color=no"]
    ended = run(
        [sys.executable, "-B", "-m", "pytest", *options, "-W", "error", *selection],
        directory=CHECKOUT,
        scratch=scratch,
        seconds=seconds,
    )
    print(ended.said)
    assert ended.status == 0, ended.said[-20_000:]
    assert " passed" in ended.said
    assert " skipped" not in ended.said


def run(command: Sequence[str], *, directory: Path, scratch: Path, seconds: float) -> Ended:
    """Run the command in that directory, as root, on the other kernel. `scratch` is an empty directory."""
    version = _version()
    assert version is not None
    script, socket, console = scratch / "script", scratch / "files", scratch / "console"
    script.write_text(_SCRIPT.format(directory=quote(str(directory)), command=" ".join(map(quote, command)), exit=EXIT))
    ramdisk = _ramdisk(scratch, version, script)
    with (scratch / "virtiofsd.log").open("wb") as log:
        files = subprocess.Popen(
            [
                str(VIRTIOFSD),
                f"--socket-path={socket}",
                *("-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _until_there(socket, files)
        with console.open("wb") as out:
            machine = subprocess.Popen(
                [
                    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                    *("-machine", "q35,accel=tcg,memory-backend=memory", "-cpu", "max", "-smp", "2", "-m", MEMORY),
                    *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on", "-serial", "stdio"),
                    *("-kernel", f"/boot/vmlinuz-{version}", "-initrd", str(ramdisk)),
                    *("-append", "console=ttyS0 quiet panic=-1"),
                    *(
                        "-chardev",
                        f"socket,id=files,path={socket}",
                        "-device",
                        "vhost-user-fs-pci,chardev=files,tag=machine",
                    ),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            machine.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            machine.kill()
            machine.wait()
    finally:
        files.kill()
        files.wait()
    said = console.read_text(errors="replace").replace("\r", "")
    found = re.search(rf"^{EXIT}(\d+)$", said, re.M)
    return Ended(int(found[1]) if found else 255, said)


def _version() -> str | None:
    kernels = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"))
    return kernels[-1].name.removeprefix("vmlinuz-") if kernels else None


def _until_there(socket: Path, files: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30 * PATIENCE
    while not socket.exists():
        assert files.poll() is None, "virtiofsd ended"
        assert time.monotonic() < deadline, "virtiofsd makes no socket"
        time.sleep(0.02)


def _ramdisk(scratch: Path, version: str, script: Path) -> Path:
    root = scratch / "ramdisk"
    for name in ("bin", "dev", "proc", "sys", "modules", "lower", "over", "root"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    modules: list[str] = []
    for module in ("virtio_pci", "virtiofs", "overlay"):
        listed = subprocess.run(
            ["modprobe", "-S", version, "--show-depends", module], capture_output=True, text=True, check=True
        )
        for line in listed.stdout.splitlines():
            path = Path(line.split()[1])
            if path.name not in modules:
                modules.append(path.name)
                (root / "modules" / path.name).write_bytes(path.read_bytes())
    (root / "init").write_text(_INIT.format(modules=" ".join(modules), script=quote(str(script)), exit=EXIT))
    for file in ("bin/busybox", "init"):
        (root / file).chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), stdout=subprocess.PIPE, check=True
    )
    ramdisk = scratch / "ramdisk.gz"
    ramdisk.write_bytes(gzip.compress(archive.stdout, 1))
    return ramdisk
