"""`kumulusctl` against a real API server, as an operator, a tenant and a stranger would use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kumulus.api.compute import VirtualMachine
from kumulus.api.console import ConsoleRequest
from kumulus.api.image import Image
from kumulus.api.load_balancer import LoadBalancer
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.network import Network, NetworkInterface
from kumulus.api.registry import KINDS
from kumulus.api.routing import FloatingIP, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.cli.cluster import Cluster
from kumulus.cli.people import main
from kumulus.kube.builtin import SECRET
from kumulus_lab import deadline, places
from kumulus_lab.cluster import NativeCluster
from tests.patience import PATIENCE

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]

VM: Raw = {"resources": {"cpus": 1, "memory": "128Mi"}, "disks": [{"name": "root", "ephemeral": {"image": "tiny"}}]}


@dataclass(frozen=True, slots=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def namespace(kept_namespace: str) -> str:
    """Where no controller works."""
    return kept_namespace


@pytest.fixture
def run(cluster: NativeCluster, namespace: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `kumulusctl` as an administrator in the test's namespace, or with another kubeconfig."""

    def run_it(*words: str, kubeconfig: Path | None = None) -> Said:
        capsys.readouterr()
        code = main(["--kubeconfig", str(kubeconfig or cluster.kubeconfig), "-n", namespace, *words])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run_it


@pytest.fixture
def api(cluster: NativeCluster) -> Cluster:
    """The API server, as an administrator."""
    return Cluster.connect(cluster.kubeconfig)


@pytest.fixture
def vm(api: Cluster, namespace: str) -> Raw:
    """A machine that no controller looks at."""
    return api.create(VirtualMachine.KIND, {"metadata": {"name": "web1"}, "spec": VM}, namespace)


@pytest.fixture
def tenant(cluster: NativeCluster, namespace: str, tmp_path: Path) -> Path:
    """Credentials of somebody with the role `edit` in the test's namespace."""
    return _account(cluster, tmp_path, namespace, "tenant", "rolebinding", "--clusterrole=edit")


def _account(cluster: NativeCluster, directory: Path, namespace: str, name: str, binding: str, role: str) -> Path:
    cluster.kubectl_run("-n", namespace, "create", "serviceaccount", name)
    subject = f"--serviceaccount={namespace}:{name}"
    cluster.kubectl_run("-n", namespace, "create", binding, f"{namespace}-{name}", role, subject)
    return cluster.kubeconfig_for(directory / f"{name}.kubeconfig", namespace, name)


def patch_status(api: Cluster, raw: Raw, status: Raw) -> None:
    """Write a status, as a controller would."""
    kind = next(resource.KIND for resource in KINDS if resource.KIND.kind == raw["kind"])
    path = kind.path(raw["metadata"]["namespace"], raw["metadata"]["name"], "status")
    api.request("PATCH", path, body={"status": status}, content_type="application/merge-patch+json")


def spec_of(api: Cluster, namespace: str, name: str = "web1") -> Raw:
    spec: Raw = api.get(VirtualMachine.KIND, name, namespace)["spec"]
    return spec


def test_a_machine_that_cannot_be_moved_is_said_to_be_so_and_nothing_stays(
    run: Run, api: Cluster, namespace: str, vm: Raw
) -> None:
    why = "Disk root is ephemeral: it is on its host alone."
    stalled = {"status": "True", "reason": "LocalDisks", "message": why, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    conditions = [{"type": "Ready", **stalled, "status": "False"}, {"type": "Stalled", **stalled}]
    kind = VirtualMachineMigration.KIND

    def controllers() -> None:
        made = deadline.until(lambda: api.objects(kind, namespace), "the command makes a migration", seconds=20)[0]
        patch_status(api, {"kind": kind.kind, **made}, {"phase": "Pending", "conditions": conditions})

    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(controllers)
        said = run("vm", "migrate", "web1", "--timeout", "120")
        done.result()
    assert said.code == 1 and why in said.err
    assert api.objects(kind, namespace) == []


def test_power_commands_change_the_spec(run: Run, api: Cluster, namespace: str, vm: Raw) -> None:
    said = run("vm", "stop", "web1")
    assert (said.code, said.out) == (0, "virtualmachine.compute.kumulus.io/web1 will stop\n")
    assert spec_of(api, namespace)["powerState"] == "Stopped"
    refused = run("vm", "restart", "web1")
    assert refused.code == 1
    assert "`kumulusctl vm start web1` starts it" in refused.err
    assert run("vm", "stop", "web1", "--force").code == 0
    assert spec_of(api, namespace)["stop"]["mode"] == "Force"
    assert run("vm", "start", "web1").code == 0
    spec = spec_of(api, namespace)
    assert (spec["powerState"], spec["stop"]["mode"]) == ("Running", "Graceful")
    assert run("vm", "restart", "web1").code == 0
    first = spec_of(api, namespace)["restartRequest"]
    assert run("vm", "pause", "web1", "-o", "name").out == "virtualmachine.compute.kumulus.io/web1\n"
    assert spec_of(api, namespace)["powerState"] == "Paused"
    assert run("vm", "suspend", "web1").code == 0
    assert spec_of(api, namespace)["powerState"] == "Suspended"
    assert run("vm", "resume", "web1").code == 0
    assert spec_of(api, namespace)["powerState"] == "Running"
    assert spec_of(api, namespace)["restartRequest"] == first
    assert run("vm", "resize", "web1", "--cpus", "3", "--memory", "3Gi").code == 0
    assert spec_of(api, namespace)["resources"] == {"cpus": 3, "memory": "3Gi"}
    assert run("vm", "resize", "web1", "--type", "small").code == 0
    spec = spec_of(api, namespace)
    assert (spec["instanceType"], "resources" in spec) == ("small", False)
    assert "spec.resources.memory" in run("vm", "resize", "web1", "--cpus", "1", "--memory", "much").err


def test_list_show_and_the_forms_for_programs(run: Run, api: Cluster, namespace: str, vm: Raw) -> None:
    ready = {"type": "Ready", "status": "False", "reason": "NoHostFits", "message": "0 of 0 \x1b[31mhosts\x07 fit"}
    patch_status(api, vm, {"phase": "Scheduling", "conditions": [ready]})
    rows = run("vm", "list").out.splitlines()
    assert rows[0].split() == ["NAME", "PHASE", "REASON", "HOST", "CPUS", "MEMORY", "AGE"]
    assert rows[1].split()[:3] == ["web1", "Scheduling", "NoHostFits"]
    assert any(line.split()[:2] == [namespace, "web1"] for line in run("vm", "list", "-A").out.splitlines())
    shown = run("vm", "show", "web1").out
    assert "0 of 0 hosts fit" in shown
    assert "\x1b" not in shown
    listed = json.loads(run("vm", "list", "-o", "json").out)
    assert [item["metadata"]["name"] for item in listed["items"]] == ["web1"]
    assert yaml.safe_load(run("-o", "yaml", "vm", "show", "web1").out)["kind"] == "VirtualMachine"


def test_nothing_there_is_said_beside_the_answer(run: Run) -> None:
    said = run("vm", "list")
    assert (said.code, said.out) == (0, "")
    assert "There are no machines" in said.err


def test_wait_and_delete(run: Run, api: Cluster, namespace: str, vm: Raw) -> None:
    late = run("vm", "wait", "web1", "--timeout", "1")
    assert late.code == 1
    assert "vm explain web1" in late.err
    patch_status(api, vm, {"phase": "Running", "observedGeneration": vm["metadata"]["generation"]})
    assert run("vm", "wait", "web1", "--for", "Running").out.endswith("is Running\n")
    api.patch(VirtualMachine.KIND, "web1", {"spec": {"deletionProtection": True}}, namespace)
    protected = run("vm", "delete", "web1")
    assert protected.code == 1
    assert "kubectl -n" in protected.err
    api.patch(VirtualMachine.KIND, "web1", {"spec": {"deletionProtection": False}}, namespace)
    assert run("vm", "delete", "web1").out.endswith("deleted\n")
    assert run("vm", "show", "web1").code == 1


def test_wait_sees_a_change_that_comes_while_it_waits(
    cluster: NativeCluster, api: Cluster, namespace: str, vm: Raw
) -> None:
    api.patch(VirtualMachine.KIND, "web1", {"metadata": {"finalizers": ["kumulus.io/cleanup"]}}, namespace)
    with _kumulusctl(cluster, namespace, "vm", "delete", "web1", "--timeout", "30") as deleting:
        deadline.until(
            lambda: "deletionTimestamp" in api.get(VirtualMachine.KIND, "web1", namespace)["metadata"],
            "deletion",
            seconds=30,
        )
        api.patch(VirtualMachine.KIND, "web1", {"metadata": {"finalizers": None}}, namespace)
        out, err = deleting.communicate(timeout=30 * PATIENCE)
    assert (deleting.returncode, err) == (0, "")
    assert out.endswith("deleted\n")


def _kumulusctl(cluster: NativeCluster, namespace: str, *words: str) -> subprocess.Popen[str]:
    # Interrupts are heard: a shell that runs the tests in the background would have them ignored.
    heard = ["env", "--default-signal=INT"]
    argv = [*heard, str(places.script("kumulusctl")), "--kubeconfig", str(cluster.kubeconfig), "-n", namespace, *words]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "80"}
    )


def _answer(
    api: Cluster, namespace: str, log: str | None, *, unlike: str = "", reason: str = "Read", message: str = ""
) -> str:
    """Answer the next console request, as a controller would; its name."""

    def pending() -> Raw | None:
        for raw in api.objects(ConsoleRequest.KIND, namespace):
            if raw["metadata"]["name"] != unlike and "phase" not in raw.get("status", {}):
                return raw
        return None

    request = deadline.until(pending, "a console request", seconds=30)
    ready = {"type": "Ready", "status": "False" if log is None else "True", "reason": reason, "message": message}
    patch_status(api, request, {"phase": "Failed" if log is None else "Ready", "log": log, "conditions": [ready]})
    name: str = request["metadata"]["name"]
    return name


def test_logs_are_shown_without_what_a_terminal_would_obey(
    cluster: NativeCluster, api: Cluster, namespace: str, vm: Raw
) -> None:
    with _kumulusctl(cluster, namespace, "vm", "logs", "web1", "--tail", "2") as logs:
        _answer(api, namespace, "first\r\n\x1b]0;pwned\x07\x1b[2Jsecond\r\nlogin: \x1b[5n")
        out, err = logs.communicate(timeout=30 * PATIENCE)
    assert (logs.returncode, err) == (0, "")
    assert out == "second\nlogin: \n"
    assert api.objects(ConsoleRequest.KIND, namespace) == []


def test_follow_prints_each_line_once_and_ends_with_the_interrupt(
    cluster: NativeCluster, api: Cluster, namespace: str, vm: Raw
) -> None:
    with _kumulusctl(cluster, namespace, "vm", "logs", "web1", "--follow") as logs:
        assert logs.stdout is not None
        first = _answer(api, namespace, "one\ntwo\n")
        assert [logs.stdout.readline(), logs.stdout.readline()] == ["one\n", "two\n"]
        _answer(api, namespace, "one\ntwo\n\x1b[31mthree\n", unlike=first)
        assert logs.stdout.readline() == "three\n"
        logs.send_signal(signal.SIGINT)
        rest, err = logs.communicate(timeout=30 * PATIENCE)
    assert (rest, err) == ("", "")
    assert logs.returncode == 130


def test_logs_that_cannot_be_read_say_why(cluster: NativeCluster, api: Cluster, namespace: str, vm: Raw) -> None:
    with _kumulusctl(cluster, namespace, "vm", "logs", "web1") as logs:
        _answer(api, namespace, None, reason="NotPlaced", message="The machine is on no host yet.")
        _, err = logs.communicate(timeout=30 * PATIENCE)
    assert logs.returncode == 1
    assert err == "error: The console of web1 cannot be read: The machine is on no host yet.\n"


def test_explain_walks_to_what_is_missing(run: Run, api: Cluster, namespace: str) -> None:
    spec = {
        "instanceType": "not-there",
        "disks": [{"name": "root", "ephemeral": {"image": "not-there-either"}}],
        "cloudInit": {"userDataSecret": {"name": "boot", "key": "user-data"}},
    }
    api.create(VirtualMachine.KIND, {"metadata": {"name": "web1"}, "spec": spec}, namespace)
    said = run("vm", "explain", "web1")
    assert said.code == 0
    for words in (
        "shall be Running",
        "No controller",
        "InstanceType not-there",
        "Secret boot",
        "no image not-there-either",
    ):
        assert words in said.out
    found = json.loads(run("vm", "explain", "web1", "-o", "json").out)["findings"]
    assert {finding["level"] for finding in found} <= {"Problem", "Waiting"}
    assert all(finding["what"] for finding in found)


def test_a_tenant_sees_the_own_machines_and_gets_an_answer_to_why(
    run: Run, api: Cluster, namespace: str, vm: Raw, tenant: Path
) -> None:
    ready = {"type": "Ready", "status": "Unknown", "reason": "HostUnknown", "message": "Host h1 does not answer."}
    status = {"phase": "Unknown", "host": "h1", "observedGeneration": 1, "conditions": [ready]}
    patch_status(api, vm, status)
    assert run("vm", "list", kubeconfig=tenant).code == 0
    explained = run("vm", "explain", "web1", kubeconfig=tenant)
    assert explained.code == 0
    assert "Host h1 does not answer." in explained.out
    assert run("vm", "stop", "web1", kubeconfig=tenant).code == 0
    for words in (["vm", "list", "-A"], ["host", "list"], ["host", "add", "h9", "--zone", "z1"]):
        refused = run(*words, kubeconfig=tenant)
        assert refused.code == 1
        assert "You may not do that" in refused.err
        assert "Traceback" not in refused.err
    whole = run("status", kubeconfig=tenant)
    assert whole.code == 0
    assert "you may not see" in whole.out
    assert "1: 1 Unknown" in whole.out


def test_images_of_the_namespace_and_of_the_cluster(run: Run, api: Cluster, namespace: str) -> None:
    spec = {
        "source": {"http": {"url": "https://images.example/tiny"}},
        "checksum": {"sha256": "a" * 64},
        "compression": "xz",
        "format": "vhdx",
    }
    made = api.create(Image.KIND, {"metadata": {"name": "tiny"}, "spec": spec}, namespace)
    failed = {
        "type": "Ready",
        "status": "False",
        "reason": "ChecksumMismatch",
        "message": "It adds up to something else.",
    }
    patch_status(
        api, made, {"phase": "Importing", "progress": {"bytes": 2**20, "total": 2**22}, "conditions": [failed]}
    )
    row = next(line for line in run("image", "list").out.splitlines() if line.startswith("tiny"))
    for words in (namespace, "Importing", "ChecksumMismatch", "25% of 4 MiB"):
        assert words in row
    shown = run("image", "show", "tiny").out
    assert "It adds up to something else." in shown
    assert {("Compression:", "xz"), ("Format:", "vhdx")} <= {tuple(line.split()) for line in shown.splitlines()}
    assert run("image", "list", "-o", "name").out.splitlines().count("image.storage.kumulus.io/tiny") == 1
    assert "image list -A" in run("image", "show", "nothing").err


@pytest.fixture
def bad_kubeconfigs(cluster: NativeCluster, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Kubeconfigs that each miss something."""
    good = yaml.safe_load(cluster.kubeconfig.read_text())
    files = {}
    for name in ("closed", "stranger", "empty", "garbage", "list"):
        files[name] = tmp_path / name
    closed = json.loads(json.dumps(good))
    closed["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    files["closed"].write_text(yaml.safe_dump(closed))
    stranger = json.loads(json.dumps(good))
    stranger["users"][0]["user"] = {"token": "not-a-token"}
    files["stranger"].write_text(yaml.safe_dump(stranger))
    files["empty"].write_text("")
    files["garbage"].write_text("{[")
    files["list"].write_text("[a, b]")
    files["missing"] = tmp_path / "not-there"
    yield files


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("closed", "does not answer (connection refused)"),
        ("stranger", "does not accept your credentials"),
        ("empty", "no usable kubeconfig"),
        ("garbage", "no usable kubeconfig"),
        ("list", "no usable kubeconfig"),
        ("missing", "no usable kubeconfig"),
    ],
)
def test_errors_are_one_sentence(run: Run, bad_kubeconfigs: dict[str, Path], which: str, words: str) -> None:
    said = run("vm", "list", kubeconfig=bad_kubeconfigs[which])
    assert said.code == 1
    assert words in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["vm", "nonsense"],
        ["vm", "list", "-o", "xml"],
        ["vm", "show"],
        ["host", "add", "h1"],
        ["vm", "logs", "x", "--tail", "-1"],
        ["vm", "delete", "../../configmaps/x"],
        ["vm", "show", "web1/status"],
        ["vm", "show", ""],
        ["vm", "show", ".."],
    ],
)
def test_a_command_line_that_makes_no_sense_is_2(run: Run, words: list[str]) -> None:
    assert run(*words).code == 2


def test_what_is_not_there_is_named(run: Run, namespace: str) -> None:
    for words in (
        ["vm", "show", "x"],
        ["vm", "start", "x"],
        ["vm", "logs", "x"],
        ["vm", "explain", "x"],
        ["vm", "delete", "x"],
    ):
        said = run(*words)
        assert said.code == 1
        assert f"no machine x in namespace {namespace}" in said.err
    assert "no host x" in run("host", "show", "x").err
    unknown = run("vm", "list", "--context", "elsewhere")
    assert unknown.code == 1
    assert "elsewhere" in unknown.err


def test_snapshots_are_taken_shown_and_restored(run: Run, api: Cluster, namespace: str) -> None:
    assert run("snapshot", "create", "x").code == 2
    assert run("snapshot", "create", "before", "--vm", "web1", "--quiesce", "Required", "--no-wait").code == 0
    assert run("snapshot", "create", "data-1", "--volume", "data", "--no-wait").code == 0
    whole = api.get(VirtualMachineSnapshot.KIND, "before", namespace)
    assert whole["spec"]["quiesce"] == {"mode": "Required", "timeoutSeconds": 30}
    owner = {"apiVersion": VirtualMachineSnapshot.KIND.api_version, "kind": whole["kind"], "name": "before"}
    owned = {"ownerReferences": [{**owner, "uid": whole["metadata"]["uid"], "controller": True}]}
    part = {"metadata": {"name": "before-root", **owned}, "spec": {"volume": "web1-root"}}
    api.create(VolumeSnapshot.KIND, part, namespace)
    kept = {"disk": "root", "volume": "web1-root", "volumeUid": "u", "snapshot": "before-root", "size": "1Gi"}
    left_out = [{"disk": "tmp", "reason": "ephemeral: it goes with the machine"}]
    taken = {"phase": "Ready", "takenAt": "2026-01-01T00:00:00Z", "indications": ["Online", "NoGuestAgent"]}
    patch_status(api, whole, {**taken, "size": "1Gi", "volumes": [kept], "leftOut": left_out})

    rows = [line.split() for line in run("snapshot", "list").out.splitlines()]
    assert [row[:3] for row in rows[1:]] == [["before", "vm/web1", "Ready"], ["data-1", "volume/data", "-"]]
    assert "before-root" in run("snapshot", "list", "--parts").out
    shown = run("snapshot", "show", "before").out
    assert "Online, NoGuestAgent" in shown and "tmp (ephemeral" in shown and "root (volume web1-root, 1 GiB)" in shown
    assert "volume/data" in run("snapshot", "show", "data-1").out
    assert "no snapshot nothing" in run("snapshot", "show", "nothing").err

    for words in ((), ("--in-place", "--as", "web2"), ("--in-place", "--linked")):
        assert run("snapshot", "restore", "before", *words).code == 2
    assert run("snapshot", "restore", "before", "--in-place", "--no-wait").code == 0
    assert run("snapshot", "restore", "before", "--as", "web2", "--linked", "--no-wait").code == 0
    targets = [item["spec"]["target"] for item in api.objects(VirtualMachineRestore.KIND, namespace)]
    assert {"vm": "web1"} in targets and {"newVM": "web2", "cloneMode": "Linked"} in targets
    assert "no snapshot of a machine" in run("snapshot", "restore", "data-1", "--in-place").err
    assert run("snapshot", "delete", "before").out.endswith("before deleted\n")
    assert run("snapshot", "delete", "data-1", "--no-wait").code == 0


def test_a_volume_is_moved_and_how_far_it_is_is_told(
    cluster: NativeCluster, run: Run, api: Cluster, namespace: str
) -> None:
    def volume() -> Raw:
        return api.get(Volume.KIND, "data", namespace)

    def says(**status: Any) -> None:
        patch_status(api, volume(), {"observedGeneration": volume()["metadata"]["generation"], **status})

    api.create(Volume.KIND, {"metadata": {"name": "data"}, "spec": {"size": "1Gi"}}, namespace)
    assert "will be made in pool nfs" in run("volume", "move", "data", "--to", "nfs").out
    says(phase="InUse", pool="local", host="h1", size="1Gi")
    assert "will be moved to pool nfs" in run("volume", "move", "data", "--to", "nfs").out
    assert volume()["spec"]["pool"] == "nfs"
    moving = {"type": "Moving", "status": "True", "reason": "Moving", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    progress = {"bytes": 1 << 28, "total": 1 << 30, "rate": 1 << 26, "remainingSeconds": 12}
    says(phase="Moving", movingTo="nfs", progress=progress, conditions=[moving])
    listed, shown = run("volume", "list").out, run("volume", "show", "data").out
    for words in ("local > nfs", "25% of 1 GiB, 64 MiB/s, 12s left"):
        assert words in listed
    assert "25% of 1 GiB" in shown and "Moves to:" in shown
    assert "will stay in pool local" in run("volume", "move", "data", "--to", "local").out
    late = run("volume", "move", "data", "--to", "nfs", "--wait", "--timeout", "1")
    assert late.code == 1 and "is not in pool nfs after 1s" in late.err
    with _kumulusctl(
        cluster, namespace, "volume", "move", "data", "--to", "nfs", "--wait", "--timeout", "30"
    ) as waiting:
        assert waiting.stderr is not None and waiting.stderr.readline().startswith("data: 25% of 1 GiB")
        says(phase="InUse", pool="nfs", movingTo=None, progress=None, conditions=[])
        out, err = waiting.communicate(timeout=30 * PATIENCE)
    assert waiting.returncode == 0 and out.endswith("is in pool nfs\n"), err
    assert run("volume", "move", "none", "--to", "nfs").code == 1


def test_networks_and_interfaces_are_shown_with_whose_addresses_they_are(
    run: Run, api: Cluster, namespace: str
) -> None:
    assert "no networks in namespace" in run("net", "list").err and "no network interfaces" in run("nic", "list").err
    spec = {"cidrs": ["10.0.0.0/24"], "dns": {"domain": "front.internal"}}
    net = api.create(Network.KIND, {"metadata": {"name": "front"}, "spec": spec}, namespace)
    found = {"vni": 5000, "mtu": 1450, "driver": "linux", "gateways": ["10.0.0.1"], "services": ["10.0.0.2"]}
    patch_status(api, net, {**found, "phase": "Ready", "allocated": 1, "hosts": 1})
    for name, network in (("web1-eth0", "front"), ("other", "back")):
        raw = api.create(NetworkInterface.KIND, {"metadata": {"name": name}, "spec": {"network": network}}, namespace)
        if name == "web1-eth0":
            has = {"addresses": ["10.0.0.3"], "macAddress": "02:00:00:00:00:03", "vm": "web1", "host": "h1"}
            patch_status(api, raw, {**has, "phase": "Attached"})
    machine = {**VM, "interfaces": [{"name": "eth0", "network": "front"}]}
    raw = api.create(VirtualMachine.KIND, {"metadata": {"name": "web1"}, "spec": machine}, namespace)
    waits = {"type": "NetworkReady", "status": "False", "reason": "NotAttached", "message": "Not yet."}
    waits["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    patch_status(api, raw, {"phase": "Running", "host": "h1", "addresses": ["10.0.0.3"], "conditions": [waits]})

    listed, shown = run("net", "list").out, run("net", "show", "front").out
    assert "front" in listed and "10.0.0.0/24" in listed
    for words in ("10.0.0.1 for a router", "front.internal", "linux, VNI 5000", "1 addresses", "web1-eth0", "10.0.0.3"):
        assert words in shown, shown
    assert "other" not in shown, "it is in another network"
    nics = run("nic", "list").out
    assert "web1-eth0" in nics and "02:00:00:00:00:03" in nics and "other" in nics and "default" in nics
    vm = run("vm", "show", "web1").out
    assert "eth0 (network front)" in vm and "10.0.0.3" in vm and "NetworkReady" in vm
    assert "no network none" in run("net", "show", "none").err
    assert json.loads(run("net", "show", "front", "-o", "json").out)["status"]["vni"] == 5000
    net = api.create(Network.KIND, {"metadata": {"name": "tagged"}, "spec": {"type": "L2"}}, namespace)
    patch_status(api, net, {"vlan": 120, "physicalNetwork": "dc", "mtu": 1500, "driver": "linux", "phase": "Ready"})
    assert "linux, VLAN 120 of dc" in run("net", "show", "tagged").out


def test_a_packet_is_traced_and_what_is_wrong_is_explained(
    run: Run, api: Cluster, namespace: str, tenant: Path
) -> None:
    nets = {}
    for number, name in enumerate(("front", "back")):
        raw = api.create(
            Network.KIND, {"metadata": {"name": name}, "spec": {"cidrs": [f"10.0.{number}.0/24"]}}, namespace
        )
        patch_status(api, raw, {"vni": 5000 + number, "mtu": 1450, "driver": "linux", "phase": "Ready"})
        nets[name] = raw["metadata"]["uid"]
    rules = {"ingress": [{"protocol": "TCP", "ports": ["5432"], "from": {"securityGroup": "web"}}]}
    for name, spec in (("web", {"egress": [{}]}), ("data", rules)):
        api.create(SecurityGroup.KIND, {"metadata": {"name": name}, "spec": spec}, namespace)
    for name, net, address, group in (("web1", "front", "10.0.0.3", "web"), ("db1", "back", "10.0.1.3", "data")):
        interfaces = [{"name": "eth0", "network": net, "securityGroups": [group]}]
        raw = api.create(
            VirtualMachine.KIND, {"metadata": {"name": name}, "spec": {**VM, "interfaces": interfaces}}, namespace
        )
        patch_status(api, raw, {"phase": "Running", "host": "h1"})
        spec = {"network": net, "securityGroups": [group]}
        raw = api.create(NetworkInterface.KIND, {"metadata": {"name": f"{name}-eth0"}, "spec": spec}, namespace)
        found = {"network": nets[net], "addresses": [address], "macAddress": f"02:00:00:00:00:0{len(name)}"}
        patch_status(api, raw, {**found, "vm": name, "host": "h1", "phase": "Attached"})
    raw = api.create(Router.KIND, {"metadata": {"name": "main"}, "spec": {"networks": ["front", "back"]}}, namespace)
    legs = [{"name": n, "uid": uid, "addresses": [f"10.0.{at}.1"]} for at, (n, uid) in enumerate(nets.items())]
    why = {
        "type": "Ready",
        "status": "False",
        "reason": "NoGatewayHost",
        "message": "No host can have it (h1: no keepalived).",
    }
    lacks = [
        one | {"lastTransitionTime": "2026-01-01T00:00:00Z"}
        for one in (why, why | {"type": "Stalled", "status": "True"})
    ]
    patch_status(api, raw, {"phase": "Failed", "networks": legs, "conditions": lacks, "observedGeneration": 1})

    off = run("net", "trace", "web1", "db1", "--port", "5432", kubeconfig=tenant)
    assert off.code == 3, off.err
    assert "No host routes for Router main (NoGatewayHost)" in off.out and "dropped at step" in off.out
    said = run("router", "explain", "main", kubeconfig=tenant)
    assert "no keepalived" in said.out and "kubectl describe networkclass" in said.out
    assert json.loads(run("router", "explain", "main", "-o", "json").out)["findings"][0]["level"] == "Problem"
    patch_status(api, raw, {"phase": "Active", "activeHost": "h1", "conditions": []})

    passes = run("net", "trace", "web1", "db1", "--protocol", "tcp", "--port", "5432", kubeconfig=tenant)
    assert passes.code == 0, passes.out + passes.err
    assert "SecurityGroup data of interface db1-eth0 lets TCP 5432 from 10.0.0.3 in" in passes.out
    assert "spec.ingress[0]" in passes.out and "you may not see their work orders" in passes.out
    shut = run("net", "trace", "web1", "db1", "--port", "22", "-o", "json", kubeconfig=tenant)
    answer = json.loads(shut.out)
    assert (shut.code, answer["verdict"]) == (3, "Dropped")
    assert [step["where"] for step in answer["steps"] if step["verdict"] == "Dropped"] == ["Ingress"]
    # Who may see work orders sees that none is there.
    unknown = run("net", "trace", "web1", "db1", "--port", "5432")
    assert unknown.code == 4 and "Host h1 has not been told of Network front yet" in unknown.out
    assert run("net", "trace", "web1", "nobody").code == 1
    assert run("net", "trace", "web1", "db1", "--protocol", "udp").code == 2
    nic = run("nic", "show", "web1-eth0", kubeconfig=tenant).out
    assert "10.0.0.3" in nic and "kumulus_network_interface_*" in nic and "agent of h1" in nic
    assert (
        "All is well" in run("nic", "explain", "web1-eth0").out
        or "No controller" in run("nic", "explain", "web1-eth0").out
    )


def test_load_balancers_are_shown_with_who_is_well(run: Run, api: Cluster, namespace: str) -> None:
    assert "no load balancers in namespace" in run("lb", "list").err
    spec = {
        "network": "front",
        "listeners": [{"port": 80, "protocol": "HTTP", "targetPort": 8080}, {"port": 5432}],
        "members": {"selector": {"app": "site"}},
        "healthCheck": {"type": "HTTP", "path": "/healthz", "intervalSeconds": 7},
    }
    raw = api.create(LoadBalancer.KIND, {"metadata": {"name": "site"}, "spec": spec}, namespace)
    members = [{"name": "web1-eth0", "vm": "web1", "address": "10.0.0.11", "healthy": True}]
    members.append({"name": "web2-eth0", "vm": "web2", "address": "10.0.0.12", "healthy": False})
    found = {"phase": "Ready", "addresses": ["10.0.0.80"], "healthy": "1/2", "members": members, "activeHost": "h1"}
    patch_status(api, raw, {**found, "standbyHosts": ["h2"]})
    listed, shown = run("lb", "list").out, run("lb", "show", "site").out
    for words in ("site", "10.0.0.80", "HTTP 80 to 8080, TCP 5432", "1/2"):
        assert words in listed, listed
    for words in ("app=site", "HTTP /healthz, every 7 s", "h1", "h2", "web2-eth0", "10.0.0.12", "no"):
        assert words in shown, shown
    assert "no load balancer none" in run("lb", "show", "none").err


def test_routers_are_shown_with_their_floating_addresses(run: Run, api: Cluster, namespace: str) -> None:
    assert "no routers in namespace" in run("router", "list").err
    assert "no floating addresses in namespace" in run("fip", "list").err
    spec = {"networks": ["front"], "externalNetwork": "public"}
    raw = api.create(Router.KIND, {"metadata": {"name": "main"}, "spec": spec}, namespace)
    uid = "00000000-0000-0000-0000-000000000001"
    networks = [{"name": "front", "uid": uid, "addresses": ["10.0.0.1"]}]
    found = {"phase": "Active", "networks": networks, "externalAddress": "203.0.113.10", "activeHost": "h1"}
    patch_status(api, raw, {**found, "standbyHosts": ["h2"]})
    forwards = [{"port": 80, "targetPort": 8080, "interface": "web1-eth0"}]
    floating = {"externalNetwork": "public", "portForwards": forwards}
    raw = api.create(FloatingIP.KIND, {"metadata": {"name": "site"}, "spec": floating}, namespace)
    patch_status(api, raw, {"phase": "Active", "address": "203.0.113.11", "router": "main", "host": "h1"})
    listed, shown, fips = run("router", "list").out, run("router", "show", "main").out, run("fip", "list").out
    for words in ("main", "front", "203.0.113.10", "Active", "h1", "h2"):
        assert words in listed, listed
    for words in ("public, 203.0.113.10", "10.0.0.1", "203.0.113.11", "TCP 80 to web1-eth0:8080"):
        assert words in shown, shown
    assert "203.0.113.11" in fips and "main" in fips
    assert "no router none" in run("router", "show", "none").err


def test_a_support_bundle_of_a_real_cluster_has_the_objects_and_no_secret(
    run: Run, api: Cluster, namespace: str, tmp_path: Path
) -> None:
    planted = "hunter-2-horses"
    note = {"note": planted}
    spec = {**VM, "cloudInit": {"userData": f"#cloud-config\npassword: {planted}"}}
    api.create(VirtualMachine.KIND, {"metadata": {"name": "told", "annotations": note}, "spec": spec}, namespace)
    api.create(SECRET, {"metadata": {"name": "planted"}, "stringData": {"password": planted}}, namespace)
    source = {"http": {"url": f"https://images.example.com/a.img?token={planted}"}}
    image = {"source": source, "format": "qcow2", "checksum": {"sha256": "a" * 64}}
    api.create(Image.KIND, {"metadata": {"name": "told"}, "spec": image}, namespace)
    path = tmp_path / "bundle.tar.gz"
    said = run("support-bundle", str(path), "--metrics", "http://127.0.0.1:1/metrics")
    assert said.code == 0, said.err
    with tarfile.open(path) as tar:
        found = {entry.name: tar.extractfile(entry).read().decode() for entry in tar}  # type: ignore[union-attr]
    assert not [name for name, text in found.items() if planted in text]
    machines = json.loads(found["bundle/objects/virtualmachines.compute.kumulus.io.json"])
    (told,) = [
        one for one in machines if one["metadata"]["namespace"] == namespace and one["metadata"]["name"] == "told"
    ]
    assert told["spec"]["resources"] == VM["resources"]
    assert len([name for name in found if name.startswith("bundle/objects/")]) == len(KINDS)
    assert json.loads(found["bundle/versions.json"])["server"]["gitVersion"].startswith("v1.")
    assert found["bundle/problems.txt"].startswith("metrics of http://127.0.0.1:1/metrics: ")
