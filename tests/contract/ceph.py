"""A Ceph cluster of one's own for tests: a monitor, a manager and an OSD that keeps its objects in memory.

Its daemons are children of the test and end with it; what they write is in one directory. Access is by
keys (cephx), as in a real cluster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from kumulus_lab import ports
from tests.patience import PATIENCE

POOL = "vms"
USER = "kumulus"
STRANGER = "stranger"
"""A user that may ask the monitors and read no pool."""

CAPABILITIES = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    "mgr.a": ("mon", "allow profile mgr", "osd", "allow *"),
    "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
    f"client.{USER}": ("mon", "profile rbd", "osd", f"profile rbd pool={POOL}"),
    f"client.{STRANGER}": ("mon", "allow r"),
}

CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port},v1:127.0.0.1:{old_port}]
mon_initial_members = a
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
keyring = {root}/keyring
run_dir = {root}
admin_socket =
log_file = {root}/$name.log
mon_data = {root}/mon
mgr_data = {root}/mgr
osd_data = {root}/osd
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mgr_stats_period = 1
mgr_initial_modules =
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_memory_target = 939524096
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
"""


def why_none() -> str | None:
    """Why there can be no cluster on this machine, or None."""
    if os.geteuid() != 0:
        return "needs root: a Ceph cluster is made"
    missing = [name for name in ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd") if shutil.which(name) is None]
    return f"needs {', '.join(missing)}: run hack/setup.py" if missing else None


class CephCluster:
    """A cluster with one pool. `start` and `stop` once each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("mon", "mgr", "osd"):
            (root / name).mkdir(parents=True)
        self._fsid = str(uuid.uuid4())
        port, old_port = ports.free(2)
        self.monitors = (f"127.0.0.1:{port}",)
        self._conf = root / "ceph.conf"
        self._conf.write_text(CONF.format(fsid=self._fsid, root=root, port=port, old_port=old_port))
        self._map = f"[v2:127.0.0.1:{port},v1:127.0.0.1:{old_port}]"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Make and start it; returns when the pool can be used."""
        keyring, osd = str(self.root / "keyring"), str(uuid.uuid4())
        for name, capabilities in CAPABILITIES.items():
            pairs = zip(capabilities[::2], capabilities[1::2], strict=True)
            options = [word for kind, what in pairs for word in ("--cap", kind, what)]
            create = () if Path(keyring).exists() else ("--create-keyring",)
            self._run("ceph-authtool", *create, keyring, "--gen-key", "-n", name, *options)
        monmap = str(self.root / "monmap")
        self._run("monmaptool", "--create", "--addv", "a", self._map, "--fsid", self._fsid, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("mon", "a")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.ceph("osd", "new", osd)
        self._spawn("mgr", "a")
        self._spawn("osd", "0")
        self.ceph("osd", "pool", "create", POOL, "4")
        self._run("rbd", "-n", "client.admin", "pool", "init", POOL)
        deadline = time.monotonic() + 90 * PATIENCE
        while f'"name":"{POOL}"' not in self.ceph("df", "--format", "json"):
            if time.monotonic() > deadline:
                raise AssertionError(f"the cluster did not say what room it has (see {self.root}/mgr.a.log)")

    def stop(self) -> None:
        """End every daemon and remove all files."""
        for process in self._daemons.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30 * PATIENCE)
        shutil.rmtree(self.root, ignore_errors=True)

    def ceph(self, *arguments: str) -> str:
        """What the ceph command says, as the administrator."""
        return self._run("ceph", *arguments)

    def rbd(self, *arguments: str) -> str:
        """What the rbd command says, as the administrator."""
        return self._run("rbd", "-n", "client.admin", *arguments)

    def key(self, user: str = USER) -> str:
        """The key of that user."""
        return self._run("ceph-authtool", str(self.root / "keyring"), "-p", "-n", f"client.{user}").strip()

    def opened(self, image: str) -> str:
        """An image of the pool, or `image@snapshot`, as qemu-img and qemu-io open it with --image-opts."""
        name, _, snapshot = image.partition("@")
        of = f"file.image={name}," + (f"file.snapshot={snapshot}," if snapshot else "")
        return f"driver=raw,file.driver=rbd,file.pool={POOL},{of}file.user=admin,file.conf={self._conf}"

    @contextlib.contextmanager
    def silent(self, *daemons: str) -> Iterator[None]:
        """These daemons, all when none are named, do not answer."""
        pids = [self._daemons[name].pid for name in daemons or self._daemons]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def _spawn(self, kind: str, name: str) -> None:
        with (self.root / f"{kind}.out").open("wb") as output:
            self._daemons[kind] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", f"ceph-{kind}", "-f", "-i", name, "-c", str(self._conf)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _run(self, program: str, *arguments: str) -> str:
        conf = () if program in ("ceph-authtool", "monmaptool") else ("-c", str(self._conf))
        done = subprocess.run(
            [program, *conf, *arguments],
            capture_output=True,
            text=True,
            timeout=120 * PATIENCE,
            check=False,
            env=_ENVIRONMENT,
        )
        assert done.returncode == 0, f"{program} {arguments[0]}: {done.stderr[-2000:]}"
        return done.stdout


_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/nonexistent"}
