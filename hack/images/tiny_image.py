"""The tiny guest: Debian's cloud kernel and busybox on a small disk that boots itself in seconds, even emulated.

It says who it is on its serial console, counts seconds, reads a NoCloud seed, obeys the power button, and does on
request what guests do when they end by themselves. Its behaviour is tiny/init.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import disk
from tools import BuildError, Log

PACKAGES = ("linux-image-cloud-amd64", "busybox-static", "syslinux", "syslinux-common", "kmod")

# In the order of their need: the disk and the seed; a seed on a drive of another kind; what can come after hello.
_MODULES = {
    "first": ("virtio_pci", "virtio_blk", "isofs"),
    "drives": ("sr_mod", "sd_mod", "ata_piix", "virtio_scsi"),
    "rest": ("evdev", "button", "virtio_net", "virtio_mem", "pvpanic-mmio", "pvpanic-pci"),
}

_SYSLINUX = """\
DEFAULT linux
PROMPT 0
TIMEOUT 1
SERIAL 0 115200
LABEL linux
 KERNEL vmlinuz
 INITRD initrd.gz
 APPEND console=ttyS0,115200 panic=-1 quiet loglevel=3 tsc=reliable no_timer_check mitigations=off
"""


def build(work: Path, image: Path, log: Log) -> None:
    """Make the image."""
    kernel = disk.newest_kernel(Path("/boot"))
    initrd = _initrd(work, kernel.name.removeprefix("vmlinuz-"), log)
    boot = work / "boot.fat"
    disk.boot_partition(boot, 40 * disk.MIB, {"vmlinuz": kernel, "initrd.gz": initrd}, _SYSLINUX, log)
    disk.assemble(image, boot, None, log, spare=7 * disk.MIB)


def _initrd(work: Path, release: str, log: Log) -> Path:
    tree = work / "initrd"
    for place in ("bin", "dev", "proc", "sys", "etc", "tmp", "seed", "root", "lib/mods"):
        (tree / place).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise BuildError("busybox is not installed; `make setup` installs what images need")
    shutil.copy(busybox, tree / "bin/busybox")
    here = Path(__file__).with_name("tiny")
    for name in ("init", "dhcp"):
        shutil.copy(here / name, tree / ("init" if name == "init" else "bin/dhcp"))
        (tree / ("init" if name == "init" else "bin/dhcp")).chmod(0o755)
    (tree / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")
    (tree / "etc/issue").write_text("Kumulus tiny guest \\n \\l\n")
    known: set[str] = set()
    for stage, modules in _MODULES.items():
        order: list[str] = []
        for module in modules:
            for line in log.run(["modprobe", "-S", release, "--show-depends", module]).splitlines():
                words = line.split()
                if words[:1] == ["insmod"] and Path(words[1]).name not in known:
                    shutil.copy(words[1], tree / "lib/mods")
                    known.add(Path(words[1]).name)
                    order.append(Path(words[1]).name)
        (tree / "lib/mods" / stage).write_text("".join(f"{name}\n" for name in order))
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*"))) + "\n"
    archive = work / "initrd.cpio"
    log.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-O", archive], stdin=names, cwd=tree)
    target = work / "initrd.gz"
    with target.open("wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(archive.read_bytes())
    return target
