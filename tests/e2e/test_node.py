"""Kumulus installed by Helm, in real pods of a real node, with a real guest on a libvirt host: it comes up, a guest boots, an
upgrade and the loss of the leader leave the guest alone, an uninstallation refuses while it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from kumulus.cli.cluster import Cluster
from kumulus_lab import containers, deadline, machine, places
from kumulus_lab.lab import Lab, Wanted
from tests.conftest import new_lab
from tests.e2e.release import CHART, NAME, NAMESPACE, Helm
from tests.system.world import World

pytestmark = [pytest.mark.libvirt, pytest.mark.wide]

OLD, NEW = "0.1.0", "0.1.1"
TICK = re.compile(r"kumulus-guest: tick (\d+)")


@pytest.fixture(scope="module")
def whole() -> Iterator[Lab]:
    """A cluster with a node and one libvirt host that is not on yet; nothing of Kumulus in it."""
    if (why := containers.why_none(machine.path())) is not None:
        pytest.skip(why)
    lab = new_lab()
    try:
        lab.up(Wanted(hosts=1, controllers=False, agents=False, node=True))
        for version in (OLD, NEW):
            lab.node.load(containers.kumulus("controllers", version))
        lab.serve_image("tiny")
        yield lab
    finally:
        lab.down()


def test_a_cloud_of_pods_is_installed_used_upgraded_and_uninstalled(whole: Lab) -> None:
    cluster, helm = whole.cluster, Helm(whole.cluster.kubeconfig)
    cluster.kubectl_run("create", "namespace", NAMESPACE)
    cluster.kubectl_run("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")

    words = ["--wait", "--timeout=5m", "--set", r"modules.controllers\.network\.endpoints.enabled=false"]
    helm.run("install", NAME, CHART, *words, seconds=400)
    helm.run("test", NAME, "--timeout=2m", seconds=200)
    said = cluster.kubectl_run("-n", NAMESPACE, "logs", "deployment/kumulus-controllers", "--all-pods").stdout
    assert '"controllers.compute.migration"' in said
    assert '"controllers.network.endpoints"' not in said

    cluster.kubectl_run("apply", "--server-side", f"--filename={places.CHECKOUT}/hack/lab/manifests/zone.yaml")
    whole.start_host("h1")  # joins with a token that the pods' controllers make room for
    whole.services.wait_for_hosts(["h1"])
    cluster.kubectl_run("create", "namespace", "shop")
    world = World(whole, "shop")
    world.image("tiny", "tiny.qcow2")
    world.machine("web")
    world.phase("web", "Running", seconds=120)
    world.console("web", "kumulus-guest: tick 3")
    process = _emulator(whole)
    assert process

    helm.run("upgrade", NAME, CHART, *words, "--set", f"image.tag={NEW}", seconds=400)
    assert _emulator(whole) == process  # nobody touched the guest
    ticked = len(TICK.findall(world.console_file("web").read_text(errors="replace")))
    deadline.until(
        lambda: len(TICK.findall(world.console_file("web").read_text(errors="replace"))) > ticked, "a tick", seconds=20
    )
    images = cluster.kubectl_run(
        "-n", NAMESPACE, "get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"
    ).stdout
    assert set(images.split()) == {f"kumulus/controllers:{NEW}"}

    leader = _leader(whole)
    cluster.kubectl_run("-n", NAMESPACE, "delete", "pod", leader, "--grace-period=0", "--force", "--wait=false")
    deadline.until(lambda: _leader(whole) not in ("", leader), "another leader", seconds=60)
    world.patch("vm", "web", {"spec": {"powerState": "Stopped"}})
    world.phase("web", "Stopped", seconds=90)
    world.patch("vm", "web", {"spec": {"powerState": "Running"}})
    world.phase("web", "Running", seconds=90)
    refused = helm.complaint("uninstall", NAME, "--timeout=2m", seconds=200)
    assert "There is 1 VirtualMachine: shop/web." in refused
    assert cluster.kubectl_run("-n", NAMESPACE, "get", "deployment", "kumulus-controllers").returncode == 0

    world.delete("vm", "web")
    helm.run("uninstall", NAME, "--wait", "--timeout=2m", seconds=200)
    api = Cluster.connect(whole.kubeconfig)
    deadline.until(lambda: not _pods(whole), "the end of all pods", seconds=60)
    assert "web" not in json.dumps(api.request("GET", "/apis/compute.kumulus.io/v1alpha1/virtualmachines")["items"])


def _pods(lab: Lab) -> list[str]:
    return lab.cluster.kubectl_run("-n", NAMESPACE, "get", "pods", "-o", "name").stdout.split()


def _emulator(lab: Lab) -> str:
    """The process that is the guest, told apart from any later one."""
    return lab.host("h1").exec(["ps", "-C", "qemu-system-x86_64", "-o", "pid=,lstart="], check=False).stdout.strip()


def _leader(lab: Lab) -> str:
    """The pod that leads."""
    words = ["-n", NAMESPACE, "get", "lease", "kumulus-controllers", "-o", "jsonpath={.spec.holderIdentity}"]
    return re.sub(r"-[0-9a-f]{8}(@.*)?$", "", lab.cluster.kubectl_run(*words).stdout)
