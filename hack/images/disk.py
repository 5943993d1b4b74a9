"""Putting a disk together without mounting anything: a boot partition (FAT, syslinux) and perhaps a root (ext4).

BIOS boot: syslinux' MBR starts the active partition. The result is a compressed qcow2 image.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tools import BuildError, Log

MIB = 1 << 20
SECTOR = 512
FIRST = 1 * MIB
_MBR = ("/usr/lib/syslinux/mbr/mbr.bin", "/usr/lib/SYSLINUX/mbr.bin")


def boot_partition(path: Path, size: int, files: dict[str, Path], config: str, log: Log) -> None:
    """A FAT file system with syslinux, its configuration and these files. `size` in bytes."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    log.run(["mkfs.fat", "-F", "16", "-n", "BOOT", "-h", str(FIRST // SECTOR), path])
    log.run(["syslinux", "--install", path])
    settings = path.with_name("syslinux.cfg")
    settings.write_text(config)
    log.run(["mcopy", "-i", path, settings, "::syslinux.cfg"])
    for name, source in files.items():
        log.run(["mcopy", "-i", path, source, f"::{name}"])


def assemble(image: Path, boot: Path, root: Path | None, log: Log, *, spare: int = 0) -> None:
    """A disk of the boot partition, the root partition if any, and `spare` bytes; sparse, then compressed qcow2."""
    mbr = next((Path(place) for place in _MBR if Path(place).exists()), None)
    if mbr is None:
        raise BuildError("syslinux' mbr.bin is not installed; `make setup` installs what images need")
    raw = boot.with_name("disk.raw")
    start = FIRST + boot.stat().st_size
    total = start + (root.stat().st_size if root else 0) + spare + (MIB if root else 0)
    table = f"label: dos\nstart={FIRST // SECTOR}, size={boot.stat().st_size // SECTOR}, type=e, bootable\n"
    if root is not None:
        table += f"start={start // SECTOR}, size={root.stat().st_size // SECTOR}, type=83\n"
    with raw.open("wb") as file:
        file.truncate(total)
    log.run(["sfdisk", "--no-reread", "--no-tell-kernel", raw], stdin=table)
    with raw.open("r+b") as file:
        file.write(mbr.read_bytes()[:440])
    _copy(boot, raw, FIRST)
    if root is not None:
        _copy(root, raw, start)
    log.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compat=1.1", raw, image])


def _copy(source: Path, target: Path, offset: int) -> None:
    """Copy a file into another at an offset, leaving holes as holes."""
    zeros = bytes(MIB)
    with source.open("rb") as reader, target.open("r+b") as writer:
        writer.seek(offset)
        while chunk := reader.read(MIB):
            if chunk == zeros[: len(chunk)]:
                writer.seek(len(chunk), 1)
            else:
                writer.write(chunk)


def newest_kernel(boot: Path) -> Path:
    """The newest cloud kernel below a /boot."""
    found = sorted(boot.glob("vmlinuz-*-cloud-*"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise BuildError(f"there is no cloud kernel in {boot}; `make setup` installs linux-image-cloud-amd64")
    return found[-1]


def free_of(path: Path) -> None:
    """Remove a tree that was only needed on the way."""
    shutil.rmtree(path, ignore_errors=True)
