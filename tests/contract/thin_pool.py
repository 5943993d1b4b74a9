"""A thin pool to try things on: a volume group on a loop device, with an lvm.conf that lets LVM see nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path, PurePosixPath

from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import LvmParameters, PoolDriver, PoolParameters
from kumulus_agents.storage.lvm import kernel
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import LvmSettings

MIB = 1 << 20
SIZE = 256 * MIB
POOL = "thin"

_UDEV = Path("/run/udev/control")
"""While udev runs, devices are its business."""

_CONF = """\
devices {{ use_devicesfile = 0 filter = [ "a|^{device}$|", "r|.*|" ] }}
activation {{ monitoring = 0 udev_sync = {udev} udev_rules = {udev} }}
global {{ use_lvmpolld = 0 }}
backup {{ backup = 0 archive = 0 }}
"""


def why_none() -> str | None:
    """Why this host can have no thin pool, in a sentence; None when it can."""
    if os.geteuid() != 0:
        return "Only root can have thin pools."
    try:
        kernel.check("tried", LvmSettings(), PurePosixPath("/usr/bin/qemu-img"))
    except StorageError as error:
        return str(error)
    return None


class Group:
    """A volume group of its own. `take_down` removes it."""

    def __init__(self, directory: Path) -> None:
        self.name = f"kt{uuid.uuid4().hex[:8]}"
        self._file = directory / "disk"
        self._system = directory / "lvm"
        self._loop: str | None = None

    @property
    def settings(self) -> LvmSettings:
        return LvmSettings(system_dir=PurePosixPath(self._system), answer_seconds=120.0, change_seconds=300.0)

    def set_up(self, size: int = SIZE) -> None:
        """Without a thin pool."""
        self._file.touch()
        os.truncate(self._file, size)
        self._loop = run("losetup", "--find", "--show", str(self._file)).strip()
        self._system.mkdir()
        (self._system / "lvm.conf").write_text(_CONF.format(device=self._loop, udev=int(_UDEV.exists())))
        self.lvm("pvcreate", "--yes", self._loop)
        self.lvm("vgcreate", "--physicalextentsize", "64k", self.name, self._loop)

    def make_pool(self, *options: str, size: str = "160m") -> None:
        self.lvm(
            *("lvcreate", "--yes", "--type", "thin-pool", "--size", size, "--chunksize", "64k", "--zero", "y"),
            *(*options, "--name", POOL, self.name),
        )

    def take_down(self) -> None:
        if self._loop is not None:
            if self._system.is_dir():
                self.lvm("vgremove", "--yes", "--force", "--force", self.name, check=False)
            run("losetup", "--detach", self._loop)
        self._file.unlink(missing_ok=True)

    def lvm(self, *command: str, check: bool = True) -> str:
        environment = {
            "LVM_SYSTEM_DIR": str(self._system),
            "LC_ALL": "C",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LVM_SUPPRESS_FD_WARNINGS": "1",
        }
        return run("lvm", *command, check=check, env=environment)

    def tags(self) -> dict[str, set[str]]:
        """Of all there is but the thin pool."""
        output = self.lvm("lvs", "--reportformat", "json", "-o", "lv_name,lv_tags", self.name)
        rows = json.loads(output)["report"][0]["lv"]
        return {row["lv_name"]: set(row["lv_tags"].split(",")) for row in rows if row["lv_name"] != POOL}

    def ref(self, **changes: str) -> PoolRef:
        """A StoragePool in its thin pool."""
        parameters = LvmParameters(volume_group=self.name, thin_pool=POOL).model_copy(update=changes)
        return PoolRef(
            uid=str(uuid.uuid4()), name="near", driver=PoolDriver.LVM, parameters=PoolParameters(lvm=parameters)
        )


def run(*command: str, check: bool = True, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done.stdout
