"""The chart against a real API server: what is accepted, what an upgrade brings, what an uninstallation leaves. No pods run; the
image does, as a pod's container would, with the settings and the account that the chart has made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kumulus.api.compute import VirtualMachine
from kumulus.cli.cluster import Cluster
from kumulus_lab import commands, containers, deadline, gotools, machine
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.conftest import new_lab
from tests.e2e.container import Image
from tests.e2e.release import CHART, NAME, NAMESPACE, Helm

pytestmark = [pytest.mark.cluster, pytest.mark.wide, pytest.mark.timeout(3600)]
"""The first time Helm, promtool and the image are made within these tests."""

MACHINE = {"metadata": {"name": "web"}, "spec": {"resources": {"cpus": 1, "memory": "64Mi"}, "disks": []}}


def test_chart_is_well_made_and_a_wrong_value_is_refused_by_its_name() -> None:
    helm = Helm()
    helm.run("lint", "--strict", CHART)
    for wrong, named in (
        ("controllers.replicas=many", "controllers.replicas"),
        ("controllers.replica=3", "replica"),
        ("logs.level=loud", "logs.level"),
        (r"modules.controllers\.fabric.enabled=perhaps", "modules.controllers.fabric.enabled"),
        ("modules.Controllers.enabled=true", "Controllers"),
        ("image.digest=sha256:1", "image.digest"),
        ("events.journal.size=lots", "events.journal.size"),
    ):
        said = helm.complaint("template", NAME, CHART, "--set", wrong)
        assert named in said.replace("/", "."), said
    assert "use --namespace kumulus-system" in Helm(namespace="elsewhere").complaint("template", NAME, CHART)


def test_what_is_switched_off_is_left_out_with_its_settings() -> None:
    words = ["--set", r"modules.controllers\.network.enabled=false"]
    words += [
        "--set",
        r"modules.services\.events.enabled=true",
        "--set",
        r"modules.services\.events.settings.source=/clouds/north",
    ]
    words += ["--set", "image.registry=registry.example.com/cloud/", "--set", "monitoring.alerts.enabled=true"]
    words += ["--set", "monitoring.serviceMonitor.enabled=true"]
    made = {
        (one["kind"], one["metadata"]["name"]): one
        for one in yaml.safe_load_all(Helm().run("template", NAME, CHART, *words).stdout)
        if one
    }
    settings = yaml.safe_load(made["ConfigMap", "kumulus-controllers"]["data"]["kumulus.yaml"])
    assert settings["include"] == ["controllers"]
    assert settings["exclude"] == ["controllers.network"]
    events = yaml.safe_load(made["ConfigMap", "kumulus-events"]["data"]["kumulus.yaml"])
    assert events["include"] == ["services"]
    assert events["modules"]["services.events"] == {"source": "/clouds/north", "directory": "/var/lib/kumulus/events"}
    image = made["Deployment", "kumulus-controllers"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example.com/cloud/kumulus/controllers:0.1.0"
    assert made["PrometheusRule", "kumulus"]["spec"]["groups"][0]["rules"]
    assert made["ServiceMonitor", "kumulus"]["spec"]["endpoints"]


def test_alerts_are_rules_and_tell_of_what_they_are_about(tmp_path: Path) -> None:
    rules, program = CHART / "alerts.yaml", gotools.PROMTOOL.ensure()
    commands.run([program, "check", "rules", "--lint-fatal", rules])
    trial = tmp_path / "alerts.yaml"
    trial.write_text(Path(__file__).with_name("alerts.yaml").read_text().replace("RULES", str(rules)))
    commands.run([program, "test", "rules", trial])


@pytest.fixture
def plane() -> Iterator[Lab]:
    """A control plane in which nothing of Kumulus is, but the namespace as the operator guide makes it."""
    lab = new_lab()
    try:
        lab.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, controllers=False, agents=False))
        lab.cluster.kubectl_run("create", "namespace", NAMESPACE)
        lab.cluster.kubectl_run("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        lab.cluster.kubectl_run("label", "namespace", NAMESPACE, "app.kubernetes.io/part-of=kumulus")
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image of the checkout, as a file system."""
    if (why := containers.why_none(machine.path())) is not None:
        pytest.skip(why)
    with containers.mounted(containers.build("controllers")) as root:
        yield Image(root, tmp_path_factory.mktemp("containers"))


def test_image_needs_neither_root_nor_a_place_to_write(image: Image) -> None:
    said = image.run("kumulus", "modules").stdout
    assert "controllers" in said and "events" in said and "failed" not in said.lower()
    size = sum(path.lstat().st_size for path in image.root.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < 450 << 20  # most of it the client of Kubernetes
    assert [path for path in image.root.rglob("*") if _lifts(path)] == []
    refused = image.run("python3", "-c", "open('/etc/new', 'w')", check=False)
    assert "Read-only file system" in refused.stderr or "Permission denied" in refused.stderr


def test_controllers_of_the_image_lead_with_the_chart_s_settings_and_rights(
    plane: Lab, image: Image, tmp_path: Path
) -> None:
    cluster, helm = plane.cluster, Helm(plane.cluster.kubeconfig)
    helm.run("install", NAME, CHART, "--set", r"modules.controllers\.network\.endpoints.enabled=false")
    try:
        words = ["-n", NAMESPACE, "get", "configmap", "kumulus-controllers", "-o", r"jsonpath={.data.kumulus\.yaml}"]
        settings = tmp_path / "kumulus.yaml"
        settings.write_text(cluster.kubectl_run(*words).stdout)
        account = cluster.kubeconfig_for(tmp_path / "account", NAMESPACE, "kumulus-controllers")
        env = {"KUMULUS_CONFIG": "/run/kumulus.yaml", "KUMULUS_HTTP_PORT": "0", "KUMULUS_LOG_FORMAT": "json"}
        with image.running("kumulus", "run", kubeconfig=account, files={"/run/kumulus.yaml": settings}, env=env) as log:
            leads = ["-n", NAMESPACE, "get", "lease", "kumulus-controllers", "-o", "jsonpath={.spec.holderIdentity}"]
            deadline.until(lambda: cluster.kubectl_run(*leads, check=False).stdout, "a leader", seconds=60, every=0.5)
            said = log.read_text(errors="replace")
        assert '"controllers.compute.migration"' in said, said[-2000:]
        assert '"controllers.network.endpoints"' not in said
        assert '"status": 403' not in said and "Forbidden" not in said

        # What the Job of an uninstallation asks, as whom it asks.
        api = Cluster.connect(cluster.kubeconfig)
        api.create(VirtualMachine.KIND, MACHINE, "default")
        refused = image.run("kumulusctl", "may-uninstall", kubeconfig=account, check=False)
        assert refused.returncode == 1
        assert "There is 1 VirtualMachine: default/web." in refused.stderr
        api.delete(VirtualMachine.KIND, "web", "default")
        assert image.run("kumulusctl", "may-uninstall", kubeconfig=account).returncode == 0
    finally:
        helm.run("uninstall", NAME, "--no-hooks", "--wait")


def _lifts(path: Path) -> bool:
    """Whether a file gives who runs it another's rights."""
    return path.is_file() and not path.is_symlink() and bool(path.stat().st_mode & 0o6000)


def test_install_upgrade_and_uninstall(plane: Lab, tmp_path: Path) -> None:
    cluster, helm = plane.cluster, Helm(plane.cluster.kubeconfig)

    older = tmp_path / "older"
    shutil.copytree(CHART, older)  # the kinds, too, as files of its own
    kind = older / "kinds" / "virtualmachines.compute.kumulus.io.yaml"
    definition = yaml.safe_load(kind.read_text())
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["deletionProtection"]
    (older / "kinds" / "eventsinks.platform.kumulus.io.yaml").unlink()
    kind.write_text(yaml.safe_dump(definition, sort_keys=False))

    helm.run("install", NAME, older)
    assert helm.status()["info"]["status"] == "deployed"
    assert "deletionProtection" not in _fields(cluster)

    helm.run("upgrade", NAME, CHART, "--set", "controllers.replicas=3")
    assert "deletionProtection" in _fields(cluster)
    cluster.kubectl_run("wait", "--for=condition=Established", "crd/eventsinks.platform.kumulus.io", "--timeout=20s")
    # What `kumulusctl install` applies is there to the letter: applying it would change nothing.
    for folder in ("manifests", "kinds"):
        cluster.kubectl_run("diff", "--server-side", "--force-conflicts", f"--filename={CHART / folder}/")
    made = json.loads(
        cluster.kubectl_run("get", "deployment", "-n", NAMESPACE, "kumulus-controllers", "-o", "json").stdout
    )
    assert made["spec"]["replicas"] == 3

    api = Cluster.connect(cluster.kubeconfig)
    kept = api.create(VirtualMachine.KIND, MACHINE, "default")
    # No pod runs here that could say that nobody minds: it is refused, and nothing is gone.
    assert "timed out" in helm.complaint("uninstall", NAME, "--timeout=3s")
    helm.run("rollback", NAME, str(helm.status()["version"]))
    helm.run("upgrade", NAME, CHART, "--set", "controllers.replicas=3")
    assert cluster.kubectl_run("get", "deployment", "-n", NAMESPACE, "kumulus-controllers").returncode == 0

    helm.run("uninstall", NAME, "--no-hooks", "--wait")
    assert "kumulus-controllers" not in cluster.kubectl_run("get", "deployment,clusterrole", "-A").stdout
    assert "kumulus" not in cluster.kubectl_run("get", "validatingadmissionpolicies").stdout
    assert api.get(VirtualMachine.KIND, "web", "default")["metadata"]["uid"] == kept["metadata"]["uid"]

    helm.run("install", NAME, CHART)  # what was left is its own again
    assert api.get(VirtualMachine.KIND, "web", "default")["metadata"]["uid"] == kept["metadata"]["uid"]
    api.delete(VirtualMachine.KIND, "web", "default")


def _fields(cluster: NativeCluster) -> set[str]:
    """What a VirtualMachine may say."""
    definition = json.loads(
        cluster.kubectl_run("get", "crd", "virtualmachines.compute.kumulus.io", "-o", "json").stdout
    )
    return set(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])
