"""A Debian guest with cloud-init and a guest agent, as one disk that boots itself: what a tenant's machine is like.

The root file system is filled by `mke2fs -d` and grows to its disk at first boot. Needs root, for mmdebstrap.
"""

from __future__ import annotations

from pathlib import Path

import disk
from tools import BuildError, Log

PACKAGES = ("mmdebstrap", "syslinux", "syslinux-common", "e2fsprogs", "linux-image-cloud-amd64")
SUITE = "bookworm"

_INCLUDE = (
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "iproute2",
    "isc-dhcp-client",
    "linux-image-cloud-amd64",
    "netplan.io",
    "openssh-server",
    "qemu-guest-agent",
    "sudo",
    "systemd-sysv",
    "udev",
)
_ROOT_SIZE = 1400 * disk.MIB

_SYSLINUX = """\
DEFAULT linux
PROMPT 0
TIMEOUT 1
SERIAL 0 115200
LABEL linux
 KERNEL vmlinuz
 INITRD initrd
 APPEND root=LABEL=root rw console=tty0 console=ttyS0,115200 quiet
"""

_FILES = {
    "etc/fstab": "LABEL=root / ext4 defaults 0 1\n",
    "etc/hostname": "debian\n",
    # Only what Kumulus offers: nothing else is probed for, which is most of a first boot's waiting. cloud-init needs
    # dhclient to ask for metadata before the network is configured.
    # One kind of host key is enough; an RSA key alone takes an emulated processor ten seconds. User data may ask more.
    "etc/cloud/cloud.cfg.d/90-kumulus.cfg": (
        "datasource_list: [ NoCloud, OpenStack, None ]\nlocale: C.UTF-8\nssh_genkeytypes: [ ed25519 ]\n"
    ),
    # Debian's hook runs what an administrator puts into fsfreeze-hook.d before a freeze and after a thaw.
    "etc/qemu/qemu-ga.conf": "[general]\nfsfreeze-hook=/etc/qemu/fsfreeze-hook\n",
    "etc/systemd/system/systemd-networkd-wait-online.service.d/kumulus.conf": (
        "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=10\n"
    ),
}


def build(work: Path, image: Path, log: Log) -> None:
    """Make the image."""
    tree = work / "root"
    skip = [f"--dpkgopt=path-exclude=/usr/share/{place}/*" for place in ("doc", "man", "locale", "info")]
    log.run(["mmdebstrap", "--mode=root", "--variant=minbase", *skip, f"--include={','.join(_INCLUDE)}", SUITE, tree])
    kernel = disk.newest_kernel(tree / "boot")
    initrd = tree / "boot" / kernel.name.replace("vmlinuz", "initrd.img")
    if not initrd.exists():
        raise BuildError(f"{initrd.name} was not made while installing the kernel; see the log")
    boot = work / "boot.fat"
    disk.boot_partition(boot, 96 * disk.MIB, {"vmlinuz": kernel, "initrd": initrd}, _SYSLINUX, log)
    for name, text in _FILES.items():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (tree / "etc/machine-id").write_text("")
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for place in ("var/cache/apt", "var/lib/apt/lists"):
        for entry in (tree / place).iterdir():
            disk.free_of(entry) if entry.is_dir() else entry.unlink()
    log.run(["chroot", tree, "systemctl", "disable", "apt-daily.timer", "apt-daily-upgrade.timer"])
    root = work / "root.ext4"
    with root.open("wb") as file:
        file.truncate(_ROOT_SIZE)
    log.run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", tree, root])
    disk.free_of(tree)
    disk.assemble(image, boot, root, log)
