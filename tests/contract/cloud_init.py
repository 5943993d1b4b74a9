"""The code of Debian's cloud-init, without installing it: its services would take the host for a new machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

PYTHON = Path("/usr/bin/python3")
"""Debian's own, which its packages are for."""
SCRIPT = Path(__file__).with_name("cloud_init_ec2.py")
_NAMES = (
    *(
        "cloud-init",
        "python3-configobj",
        "python3-six",
        "python3-oauthlib",
        "python3-jsonpatch",
        "python3-json-pointer",
    ),
    *(
        "python3-jinja2",
        "python3-markupsafe",
        "python3-requests",
        "python3-urllib3",
        "python3-certifi",
        "python3-chardet",
    ),
    *("python3-idna", "python3-charset-normalizer", "python3-netifaces", "python3-yaml"),
)


@cache
def packages() -> Path | None:
    """Directory of its modules and of those that it needs, fetched once a machine; None where they cannot be had."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kumulus" / "cloud-init"
    modules = root / "usr/lib/python3/dist-packages"
    if (modules / "cloudinit").is_dir():
        return modules
    if not PYTHON.exists() or any(shutil.which(name) is None for name in ("apt-get", "dpkg-deb")):
        return None
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as directory:
        work = Path(directory)
        got = subprocess.run(["apt-get", "download", *_NAMES], cwd=work, capture_output=True, check=False, timeout=120)
        if got.returncode != 0:
            return None
        for package in sorted(work.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, work / "tree"], check=True, timeout=60)
        with suppress(OSError):  # somebody else was faster
            (work / "tree").rename(root)
    return modules if (modules / "cloudinit").is_dir() else None


def command(platform: str, interface: str) -> list[str]:
    """What to run where a guest is, for `cloud_init_ec2.py`. It finds devices in /sys, which has to be that of its own network."""
    own = 'mount -t sysfs sysfs /sys && exec "$@"'
    return [
        *("unshare", "--mount", "sh", "-c", own, "sh"),
        str(PYTHON),
        str(SCRIPT),
        str(packages()),
        platform,
        interface,
    ]
