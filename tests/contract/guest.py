"""A disk that boots Linux in two seconds and does one thing, for tests of hypervisors.

Made of the distribution's kernel and busybox: `linux-image-cloud-amd64`, `busybox-static`, `syslinux`,
`mtools`, `dosfstools`, `cpio`.
"""

from __future__ import annotations

import gzip
import os
import subprocess
from enum import StrEnum
from pathlib import Path

MODULES = (
    "drivers/acpi/button",
    "drivers/input/evdev",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-mmio",
)

PORT_MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/char/virtio_console",
)

MEMORY_MODULES = (*PORT_MODULES[:-1], "drivers/virtio/virtio_mem")

DISK_MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/scsi/scsi_common",
    "drivers/scsi/scsi_mod",
    "drivers/scsi/virtio_scsi",
    "drivers/scsi/sd_mod",
    "drivers/cdrom/cdrom",
    "drivers/scsi/sr_mod",
    "drivers/char/virtio_console",
)
"""In the order of their need."""

INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for m in button evdev pvpanic pvpanic-mmio; do insmod /modules/$m.ko; done
mode=$(sed -n 's/.*guest=\\([a-z]*\\).*/\\1/p' /proc/cmdline)
exec 3</dev/input/event0 4</dev/input/event1
for fd in 3 4; do (dd bs=24 count=1 <&$fd >/dev/null 2>&1; echo GUEST-DOWN; poweroff -f) & done
echo GUEST-READY $mode
# Linux looks at disks at the same time: which one is sda is left to chance.
find_data() {
    while [ ! -e /dev/data ]; do
        for d in /sys/block/sd*; do
            [ "$(tr -cd a-z <$d/device/vpd_pg80)" != data ] || ln -s ${d##*/} /dev/data
        done
    done
}
case "$mode" in
disks|read|disc|tray|count|pair|agent|round) for m in {disks}; do insmod /modules/$m.ko; done ;;
mute) for m in {ports}; do insmod /modules/$m.ko; done ;;
size)
    echo online_movable >/sys/devices/system/memory/auto_online_blocks
    for m in {memory}; do insmod /modules/$m.ko; done ;;
esac
case "$mode" in
poweroff) poweroff -f ;;
reboot) reboot -f ;;
panic) echo c > /proc/sysrq-trigger ;;
disc|tray)
    [ $mode = disc ] || exec 5</dev/sr0
    while :; do
        now=$(dd if=/dev/sr0 bs=2048 skip=16 count=1 2>/dev/null | dd bs=1 skip=40 count=32 2>/dev/null | tr -d ' ')
        [ "$now" = "$was" ] || echo "GUEST-DISC:$now."
        was=$now
        sleep 0.2
    done ;;
efi)
    efi=no
    [ -d /sys/firmware/efi ] && efi=yes
    # TPM2_ReadClock (TPM 2.0 part 3, 29.1). How often it was reset is after the header (10), time, and clock (8 each).
    exec 7<>/dev/tpm0
    resets() {
        printf '\\200\\1\\0\\0\\0\\12\\0\\0\\1\\201' >&7
        echo $((0x$(dd bs=64 count=1 <&7 2>/dev/null | hexdump -v -e '64/1 "%02x"' | cut -c53-60)))
    }
    echo "GUEST-EFI:$efi TPM:$(resets)."
    while sleep 1; do echo "GUEST-TPM:$(resets)."; done ;;
size)
    while :; do
        for c in /sys/devices/system/cpu/cpu[0-9]*/online; do [ ! -e $c ] || [ $(cat $c) = 1 ] || echo 1 >$c; done
        now="$(grep -c ^processor /proc/cpuinfo) $(($(sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo) / 1024))"
        [ "$now" = "$was" ] || echo "GUEST-SIZE:$now."
        was=$now
        sleep 0.2
    done ;;
read)
    while :; do
        echo 3 >/proc/sys/vm/drop_caches
        dd if=/dev/sda of=/dev/null bs=64k count=64 2>/dev/null || sleep 0.1
    done ;;
disks)
    while :; do
        now=
        for d in /sys/block/sd*; do
            [ -e $d/size ] || continue
            serial=$(tr -cd 'a-zA-Z0-9.-' <$d/device/vpd_pg80)
            now="$now $serial:$(($(cat $d/size) * 512))"
        done
        [ "$now" = "$was" ] || echo "GUEST-DISKS$now."
        was=$now
        sleep 0.2
    done ;;
count)
    find_data
    n=0
    while [ $n -lt 200 ]; do
        n=$((n + 1))
        yes $n | head -c 65536 | dd of=/dev/data bs=65536 seek=$n iflag=fullblock conv=notrunc,fsync 2>/dev/null || break
        echo "GUEST-WROTE:$n."
    done ;;
mute)
    until [ -c /dev/vport*p1 ]; do sleep 0.1; done
    for port in /dev/vport*p1; do exec 6<>$port; done ;;
pair)
    # Linux looks at disks at the same time: which one is sda is left to chance.
    while [ ! -e /dev/second ] || [ ! -e /dev/first ]; do
        for d in /sys/block/sd*; do ln -sf ${d##*/} /dev/$(tr -cd 'a-z' <$d/device/vpd_pg80); done
    done
    n=0
    while [ $n -lt 4000 ]; do
        n=$((n + 1))
        for d in first second; do
            yes $n | head -c 4096 | dd of=/dev/$d bs=4096 seek=$n iflag=fullblock conv=notrunc,fsync 2>/dev/null || break 2
        done
        echo "GUEST-WROTE:$n."
    done ;;
agent)
    for p in /sys/class/virtio-ports/*; do
        grep -q guest_agent $p/name && exec 6<>/dev/${p##*/}
    done
    # Until libvirt has opened its end, there is nothing to read and never will be, says the kernel.
    while :; do
        read -r line <&6 || { usleep 50000; continue; }
        id=$(echo "$line" | sed -n 's/.*"id": *\\([0-9]*\\).*/\\1/p')
        case "$line" in
        *guest-sync*) printf '{"return": %s}\\n' "$id" >&6 ;;
        *fsfreeze-freeze*) echo GUEST-FROZE; echo '{"return": 1}' >&6 ;;
        *fsfreeze-thaw*) echo GUEST-THAWED; echo '{"return": 1}' >&6 ;;
        *guest-info*) echo '{"return": {"version": "7.2.0", "supported_commands": []}}' >&6 ;;
        *get-host-name*) echo '{"return": {"host-name": "web.example"}}' >&6 ;;
        *get-osinfo*) echo '{"return": {"id": "tiny", "pretty-name": "Tiny 1"}}' >&6 ;;
        *network-get-interfaces*)
            a='{"ip-address-type": "ipv4", "ip-address": "10.0.0.2", "prefix": 24}'
            echo '{"return": [{"name": "eth0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": ['"$a"']}]}' >&6 ;;
        *) echo '{"error": {"class": "CommandNotFound", "desc": "no"}}' >&6 ;;
        esac
    done ;;
round)
    find_data
    n=0
    while :; do
        n=$((n + 1))
        yes $n | head -c 65536 | dd of=/dev/data bs=65536 seek=$((n % 64)) iflag=fullblock conv=notrunc,fsync 2>/dev/null || break
        echo "GUEST-WROTE:$n."
    done ;;
flood) exec cat /dev/zero | tr '\\0' 'x' ;;
esac
while :; do sleep 3600; done
"""

LOADER = """\
DEFAULT linux
PROMPT 0
TIMEOUT 1
LABEL linux
 KERNEL vmlinuz
 INITRD rd.gz
 APPEND console=ttyS0 panic=-1 quiet guest={mode}
"""

STARTUP = "fs0:\\vmlinuz initrd=\\rd.gz console=ttyS0 panic=-1 quiet guest={mode}\r\n"
"""What the shell of UEFI does by itself."""

READY = "GUEST-READY"


class Guest(StrEnum):
    """What a guest does once it has booted. Each but the first reacts to the power button."""

    HALT = "halt"
    """Nothing, and boots nothing: for a machine that only has to be on. An emulated processor that boots is a real one at work."""
    BARK = "bark"
    """Says W, begins with its watchdog, and hangs."""
    WAIT = "wait"
    POWEROFF = "poweroff"
    REBOOT = "reboot"
    PANIC = "panic"
    FLOOD = "flood"
    DISKS = "disks"
    """Says which SCSI disks it sees, by serial and bytes, whenever that changes."""
    READ = "read"
    """Reads the first SCSI disk as fast as it can."""
    SIZE = "size"
    """Brings to work the CPUs and the memory that come, and says how many and how many MiB, whenever that changes."""
    EFI = "efi"
    """Says whether UEFI started it, and how often its TPM was reset, this each second. It is started by the shell of the
    firmware."""
    DISC = "disc"
    """Says the label of the disc in its drive, whenever that changes."""
    COUNT = "count"
    """Writes a counter to the SCSI disk `data`, 64 KiB each, and says each value once it is flushed."""
    PAIR = "pair"
    """Writes a counter to the disk `first` and then to the disk `second`, 4 KiB each, flushes each, and says each value
    once both are."""
    AGENT = "agent"
    """Answers as a guest agent would, and says when its file systems are frozen and when they go on."""
    ROUND = "round"
    """The same without end, to the SCSI disk whose serial is `data`, in its first 64 blocks by turns."""
    TRAY = "tray"
    """The same, and holds the tray shut: it has the drive open."""
    MUTE = "mute"
    """Opens the port of the guest agent, and never answers."""


_STOP = bytes((0xFA, 0xF4, 0xEB, 0xFD)).ljust(510, b"\0") + b"\x55\xaa"
"""A boot sector: no interrupts (cli), halt (hlt), and again (jmp)."""


_BARK = (
    bytes.fromhex(
        "baf803b057ee"  # W to the serial port
        "b802b1b9ab25ba868031f6cd1a7216"  # find PCI device 8086:25ab, or halt
        "b80cb1bf6000b90400cd1a"  # its register 0x60: both stages at 1 MHz, of 1 s then
        "b80bb1bf6800b90200cd1a"  # its register 0x68: begin
        "f4ebfd"
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)
"""A boot sector that begins with the watchdog (Intel 6300ESB) and never tells it anything again. PCI BIOS 2.1."""


class Disks(dict[Guest, Path]):
    """Raw disks, one a kind of guest, to be used as backing files; made in a directory when they are asked for."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._kernel = max(Path("/boot").glob("vmlinuz-*-cloud-amd64"))
        self._ramdisk: Path | None = None

    def __missing__(self, guest: Guest) -> Path:
        if guest in (sectors := {Guest.HALT: _STOP, Guest.BARK: _BARK}):
            self[guest] = self._directory / f"{guest}.img"
            self[guest].write_bytes(sectors[guest].ljust(1 << 20, b"\0"))
        else:
            self._ramdisk = self._ramdisk or _ramdisk(self._directory, self._kernel.name.removeprefix("vmlinuz-"))
            self[guest] = _disk(self._directory, guest, self._kernel, self._ramdisk)
        return self[guest]


def _ramdisk(directory: Path, version: str) -> Path:
    root = directory / "root"
    for name in ("bin", "dev", "proc", "sys", "modules"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    init = INIT
    for place, modules in (("{disks}", DISK_MODULES), ("{ports}", PORT_MODULES), ("{memory}", MEMORY_MODULES)):
        init = init.replace(place, " ".join(Path(module).name for module in modules))
    (root / "init").write_text(init)
    for file in ("bin/busybox", "init"):
        (root / file).chmod(0o755)
    for module in {*MODULES, *DISK_MODULES, *PORT_MODULES, *MEMORY_MODULES}:
        source = Path(f"/lib/modules/{version}/kernel/{module}.ko")
        (root / "modules" / source.name).write_bytes(source.read_bytes())
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    command = ["cpio", "-o", "-H", "newc", "--quiet"]
    archive = subprocess.run(command, cwd=root, input=names.encode(), stdout=subprocess.PIPE, check=True)
    ramdisk = directory / "rd.gz"
    ramdisk.write_bytes(gzip.compress(archive.stdout, 1))
    return ramdisk


def _disk(directory: Path, guest: Guest, kernel: Path, ramdisk: Path) -> Path:
    disk = directory / f"{guest}.img"
    loader = directory / "syslinux.cfg"
    loader.write_text(LOADER.format(mode=guest))
    startup = directory / "startup.nsh"
    startup.write_text(STARTUP.format(mode=guest))
    disk.touch()
    os.truncate(disk, 24 << 20)
    for command in (
        ["mkfs.fat", "-F", "16", disk],
        ["mcopy", "-i", disk, kernel, "::vmlinuz"],
        ["mcopy", "-i", disk, ramdisk, loader, startup, "::"],
        ["syslinux", "--install", disk],
    ):
        subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, check=True)
    return disk
