"""Fixtures that give tests real parts: a control plane, and a lab with libvirt hosts.

Each is made once a session, when the first test asks for it, and taken down at the end whatever happened. A
session that was killed leaves its lab behind; the next one clears it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

from kumulus.api.base import Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.image import Image
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.machine_pool import VirtualMachinePool
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.routing import FloatingIP, Router
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.cli.cluster import Cluster
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.errors import NotFound
from kumulus_lab import deadline, installed, machine, places
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.processes import Identity
from tests import leftovers
from tests.patience import PATIENCE

deadline.patience = PATIENCE

# Tests stop, kill and freeze parts of the control plane, which only our own processes allow.
os.environ.setdefault("KUMULUS_LAB_CLUSTER", "native")
# Control planes of tests are short of processors, not of memory: a tenth of their work is collecting garbage.
os.environ.setdefault("GOGC", "300")

_PREFIX = "test"
CLUSTER = pytest.StashKey[NativeCluster]()
"""The control plane that tests of this process share, once there is one."""


OWNED: tuple[Kind, ...] = tuple(
    model.KIND
    for model in (
        VirtualMachinePool,  # before the machines that it would make again
        VirtualMachine,
        VirtualMachineRestore,
        VirtualMachineSnapshot,
        VolumeSnapshot,
        Volume,
        Image,
        FloatingIP,
        Router,
        LoadBalancer,
        NetworkInterface,
        Network,
    )
)
"""What keeps room on hosts: gone before the next test begins."""
LABS = ("component", "system", "fault")
"""Folders whose tests share a lab."""
WITHOUT_LAB = (
    "component/test_delete.py",
    "component/test_fencing.py",
    "component/test_image_sources.py",
    "component/test_image_travel.py",
    "component/test_migration.py",
    "component/test_move.py",
    "component/test_network_process.py",
    "component/test_snapshot.py",
    "component/test_unusable_pool.py",
    "component/test_volume.py",
    "system/test_adoption_libvirt.py",
    "system/test_ceph.py",
    "system/test_hypervisor_libvirt.py",
    "system/test_migration_libvirt.py",
    "system/test_moving.py",
    "system/test_networks_ovn.py",
    "system/test_nfs.py",
)
"""Files of such folders whose tests have a lab or hosts of their own: any process may take them."""


def _folder(nodeid: str) -> str:
    return nodeid.split("/")[1]


def _scope(nodeid: str) -> str:
    """What one process does from end to end: a folder or a file."""
    folder, file = _folder(nodeid), nodeid.partition("::")[0]
    return folder if folder in LABS and not file.endswith(WITHOUT_LAB) else file


class Folders(LoadScopeScheduling):
    """How test processes side by side (`make test`) share the tests: each takes whole folders of those that need a
    lab, so that each lab is made once, and then files of the others."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Folders:
    """Have pytest-xdist share tests by folders."""
    return Folders(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put whole folders first and then other tests of labs, because they take longest, and skip what needs libvirt where it cannot be had, with
    the one sentence that says why."""
    items.sort(key=lambda item: (_scope(item.nodeid) not in LABS, _folder(item.nodeid) not in LABS))
    wanting = [item for item in items if item.get_closest_marker("libvirt")]
    if wanting and (why := machine.why_no_libvirt()) is not None:
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason=why))


def new_lab() -> Lab:
    """A lab of this session, down yet, whose control plane begins with Kumulus installed when that is wanted. Clears labs
    of sessions that were killed.

    One process at a time: a lab that another one is just making has no owner yet, and would be taken for left over.
    """
    data = installed.ensure()
    with places.exclusive("test-labs"):
        for directory in places.labs().glob(f"{_PREFIX}*"):
            try:
                owner = json.loads((directory / "owner.json").read_text())
                alive = Identity(pid=owner["pid"], started=owner["started"]).alive()
            except (OSError, ValueError, KeyError):
                alive = False
            if not alive:
                Lab(directory.name).down()
        lab = Lab(_PREFIX + secrets.token_hex(2), data=data)
        identity = Identity.of(os.getpid())
        assert identity is not None
        lab.directory.mkdir(parents=True)
        owner = {"pid": identity.pid, "started": identity.started}
        (lab.directory / "owner.json").write_text(json.dumps(owner))
    return lab


@pytest.fixture(scope="session")
def cluster_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A control plane with Kumulus' kinds, roles and policies in it; no controllers, no hosts."""
    lab = new_lab()
    try:
        lab.up(Wanted(hosts=0, controllers=False, agents=False))
        lab.services.install()
        request.session.stash[CLUSTER] = lab.cluster
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="session")
def cluster(cluster_lab: Lab) -> NativeCluster:
    """The control plane of `cluster_lab`: `kubeconfig`, `audit_log`, `kubectl_run`, `restart_apiserver`."""
    return cluster_lab.cluster


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Two libvirt hosts with agents, controllers, and the tiny guest image on the lab's image server."""
    if (why := machine.why_no_libvirt()) is not None:
        pytest.skip(why)
    made = new_lab()
    try:
        made.up(Wanted(hosts=2))
        made.serve_image("tiny")
        yield made
    finally:
        made.down()


@pytest.fixture(scope="session")
def administrator(cluster: NativeCluster) -> Cluster:
    """Who may do everything on `cluster`, in this process: a call of kubectl costs a tenth of a second."""
    return Cluster.connect(cluster.kubeconfig)


@pytest.fixture
def namespace(cluster: NativeCluster, administrator: Cluster) -> Iterator[str]:
    """A namespace of its own for a test on `cluster`, deleted afterwards."""
    name = f"test-{secrets.token_hex(4)}"
    administrator.create(NAMESPACE, {"metadata": {"name": name}})
    try:
        yield name
    finally:
        cluster.start_apiserver()
        administrator.delete(NAMESPACE, name)


@pytest.fixture
def kept_namespace(administrator: Cluster) -> str:
    """A namespace of its own for a test on `cluster` that runs no controllers; it stays, and what is in it goes with the
    module."""
    return _kept(administrator, "test")


@pytest.fixture(scope="module")
def module_namespace(administrator: Cluster) -> str:
    """The same for those tests of a module whose objects have names of their own (`fresh_name`)."""
    return _kept(administrator, "tests")


def _kept(api: Cluster, prefix: str) -> str:
    name = f"{prefix}-{secrets.token_hex(4)}"
    leftovers.leave(name)
    api.create(NAMESPACE, {"metadata": {"name": name}})
    return name


@pytest.fixture
def fresh_name() -> str:
    """A name that no other object has."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a module's tests on `cluster` nothing is left, and their namespaces can end: what would drop the finalizers of what
    is in them runs no more."""
    yield
    if (cluster := request.session.stash.get(CLUSTER, None)) is not None:
        cluster.start_apiserver()
        api = Cluster.connect(cluster.kubeconfig)
        leftovers.clear(api)
        leftovers.let_go(api)


@contextmanager
def namespace_on(lab: Lab) -> Iterator[str]:
    """A namespace of its own for tests on `lab`; what was in it is gone before the next test. It stays itself: its end is
    asked for twice a kind, and takes ten seconds."""
    api, name = Cluster.connect(lab.kubeconfig), f"test-{secrets.token_hex(4)}"
    api.create(NAMESPACE, {"metadata": {"name": name}})
    try:
        yield name
    finally:
        lab.cluster.start_apiserver()
        for machine_ in api.objects(VirtualMachine.KIND, name):
            patch = {"spec": {"stop": {"mode": "Force"}}}  # nobody looks at how it ends any more
            with suppress(NotFound):
                api.patch(VirtualMachine.KIND, machine_["metadata"]["name"], patch, name)
        for kind in OWNED:
            api.request("DELETE", kind.path(name))
        deadline.until(lambda: not any(api.objects(kind, name) for kind in OWNED), f"the end of {name}", seconds=90)


@pytest.fixture
def lab_namespace(lab: Lab) -> Iterator[str]:
    """A namespace of its own for a test on `lab`."""
    with namespace_on(lab) as name:
        yield name
