"""What this machine can do for a lab, said in one sentence where it cannot."""

from __future__ import annotations

import os
import shutil

_PROGRAMS = ("libvirtd", "virtlogd", "qemu-system-x86_64", "qemu-img", "ip", "nft", "nsenter", "unshare", "tini")


def why_no_libvirt() -> str | None:
    """Why libvirt hosts cannot be had here; None when they can."""
    if os.geteuid() != 0:
        return "libvirt hosts need root for their network namespaces; simulated hosts (HOSTS=simulated) do not"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=path()) is None]
    if missing:
        return (
            f"libvirt hosts need {', '.join(missing)}, which `make setup` installs on Debian as root;"
            " simulated hosts (HOSTS=simulated) work without"
        )
    try:
        import libvirt  # noqa: F401
    except ImportError:
        return (
            "libvirt's Python binding is missing, which `make setup` builds where libvirt's headers are;"
            " simulated hosts (HOSTS=simulated) work without"
        )
    return None


def path() -> str:
    """The search path for programs, with those for administrators in it."""
    current = os.environ.get("PATH", os.defpath).split(":")
    return ":".join([*current, *(place for place in ("/usr/sbin", "/sbin") if place not in current)])
