"""`kumulusctl host`: from nothing to a token that works for one thing, and is dead when its Secret is."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kumulus.api.base import FORCE_DETACH
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.cli.cluster import Cluster
from kumulus.cli.people import main
from kumulus.kube import errors
from kumulus.kube.builtin import NAMESPACE, SECRET, SERVICE_ACCOUNT
from kumulus.kube.client import KubeClient
from kumulus_controllers.fabric.credentials import NamespaceEnding, NamespaceTaken, ensure_namespace
from kumulus_lab import deadline, places
from kumulus_lab.cluster import NativeCluster
from tests.patience import PATIENCE

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]

DEAD_WITHIN = 20.0
"""The API server remembers for ten seconds that a token was good."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(cluster: NativeCluster, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `kumulusctl` as an administrator, or with another kubeconfig."""

    def run_it(*words: str, kubeconfig: Path | None = None) -> Said:
        capsys.readouterr()
        code = main(["--kubeconfig", str(kubeconfig or cluster.kubeconfig), *words])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run_it


@pytest.fixture
def api(cluster: NativeCluster) -> Cluster:
    """The API server, as an administrator."""
    return Cluster.connect(cluster.kubeconfig)


@pytest.fixture
def name(api: Cluster) -> Iterator[str]:
    """A name for a host, which is gone afterwards."""
    name = f"h-{secrets.token_hex(4)}"
    yield name
    for kind, what in ((Host.KIND, name), (NAMESPACE, host_namespace(name))):
        if api.find(kind, what) is not None:
            api.delete(kind, what)


def reconcile(cluster: NativeCluster, api: Cluster, name: str) -> None:
    """What the Host controller does, once the Host is there."""
    raw = deadline.until(lambda: api.find(Host.KIND, name), "the Host", seconds=30)

    async def make() -> None:
        client = await KubeClient.from_kubeconfig(cluster.kubeconfig, user_agent="test")
        try:
            await ensure_namespace(client, Host.parse(raw))
        finally:
            await client.close()

    asyncio.run(make())
    say(api, name, {"namespace": host_namespace(name), "phase": "Joining"})


def say(api: Cluster, name: str, status: Raw) -> None:
    """Write a Host's status."""
    path = Host.KIND.path(name=name, subresource="status")
    api.request("PATCH", path, body={"status": status}, content_type="application/merge-patch+json")


def as_joining(bundle: Raw, directory: Path) -> Cluster:
    """The API server, as whoever holds the bundle."""
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "x", "cluster": {"server": bundle["server"], "certificate-authority-data": bundle["caData"]}}
        ],
        "users": [{"name": "x", "user": {"token": bundle["token"]}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "current-context": "x",
    }
    file = directory / f"{secrets.token_hex(4)}.kubeconfig"
    file.write_text(yaml.safe_dump(kubeconfig))
    return Cluster.connect(file)


def who(cluster: Cluster) -> str:
    """Who the API server takes this client for."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = cluster.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=body)
    user: str = answer["status"]["userInfo"]["username"]
    return user


def dead(cluster: Cluster) -> bool:
    """Whether the API server knows this client no more."""
    try:
        who(cluster)
    except errors.Refused as error:
        return error.status == 401
    return False


def test_host_add_from_nothing_to_a_token_that_works_once(
    cluster: NativeCluster, api: Cluster, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "join.json"
    words = ["host", "add", name, "--zone", "z1", "--hypervisor", "simulated", "--output", str(file), "--ttl", "600"]
    argv = [str(places.script("kumulusctl")), *words]
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as adding:
        reconcile(cluster, api, name)
        out, err = adding.communicate(timeout=60 * PATIENCE)
    assert (adding.returncode, out) == (0, "")
    assert api.get(Host.KIND, name)["spec"]["hypervisor"] == "simulated"
    assert file.stat().st_mode & 0o777 == 0o600
    bundle = json.loads(file.read_text())
    assert (bundle["apiVersion"], bundle["kind"]) == ("kumulus.io/v1alpha1", "JoinBundle")
    assert (bundle["host"], bundle["namespace"]) == (name, host_namespace(name))
    assert base64.b64decode(bundle["caData"]).startswith(b"-----BEGIN CERTIFICATE-----")
    assert "kumulus-agent join --bundle join.json" in err
    assert "works once and lives 10m" in err
    assert bundle["token"] not in err

    joining = as_joining(bundle, tmp_path)
    assert who(joining) == f"system:serviceaccount:{host_namespace(name)}:kumulus-join"
    for forbidden in (
        lambda: joining.objects(VirtualMachine.KIND),
        lambda: joining.objects(SECRET, host_namespace(name)),
        lambda: joining.get(Host.KIND, name),
    ):
        with pytest.raises(errors.Refused):
            forbidden()
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    path = SERVICE_ACCOUNT.path(host_namespace(name), "kumulus-agent", "token")
    assert joining.request("POST", path, body=asked)["status"]["token"]
    joining.delete(SECRET, "kumulus-join", host_namespace(name))
    deadline.until(lambda: dead(joining), "the token's death", seconds=DEAD_WITHIN)


def test_adding_again_reuses_the_host_and_kills_the_earlier_token(
    cluster: NativeCluster, run: Run, api: Cluster, name: str, tmp_path: Path
) -> None:
    api.create(Host.KIND, {"metadata": {"name": name}, "spec": {"zone": "z1"}})
    reconcile(cluster, api, name)
    first = run("host", "add", name, "--zone", "z1")
    assert first.code == 0
    second = run("host", "add", name, "--zone", "z1", "--server", cluster.server)
    old, new = json.loads(first.out), json.loads(second.out)
    deadline.until(lambda: dead(as_joining(old, tmp_path)), "the first token's death", seconds=DEAD_WITHIN)
    assert who(as_joining(new, tmp_path)).endswith(":kumulus-join")
    assert "address of this machine only" in first.err
    assert "address of this machine only" not in second.err
    other = run("host", "add", name, "--zone", "z1", "--hypervisor", "simulated")
    assert other.code == 1
    assert "already" in other.err


def test_an_operator_without_an_administrators_rights_can_add_hosts(
    cluster: NativeCluster, run: Run, api: Cluster, name: str, namespace: str, tmp_path: Path
) -> None:
    cluster.kubectl_run("-n", namespace, "create", "serviceaccount", "operator")
    binding = f"{namespace}-operator"
    subject = f"--serviceaccount={namespace}:operator"
    cluster.kubectl_run("create", "clusterrolebinding", binding, "--clusterrole=kumulus-operator", subject)
    try:
        operator = cluster.kubeconfig_for(tmp_path / "operator.kubeconfig", namespace, "operator")
        api.create(Host.KIND, {"metadata": {"name": name}, "spec": {"zone": "z1"}})
        reconcile(cluster, api, name)
        said = run("host", "add", name, "--zone", "z1", kubeconfig=operator)
        assert said.code == 0, said.err
        assert who(as_joining(json.loads(said.out), tmp_path)).endswith(":kumulus-join")
        for words in (["host", "list"], ["host", "show", name], ["status"], ["host", "cordon", name]):
            assert run(*words, kubeconfig=operator).code == 0
        assert "may not see" not in run("status", kubeconfig=operator).out
    finally:
        cluster.kubectl_run("delete", "clusterrolebinding", binding)


def test_controllers_that_do_not_run_are_named(run: Run, name: str) -> None:
    said = run("host", "add", name, "--zone", "z1", "--timeout", "1")
    assert (said.code, said.out) == (1, "")
    assert "controllers do not seem to run" in said.err


def test_a_namespace_that_belongs_to_something_else_is_not_used(run: Run, api: Cluster, name: str) -> None:
    api.create(Host.KIND, {"metadata": {"name": name}, "spec": {"zone": "z1"}})
    stalled = {
        "type": "Stalled",
        "status": "True",
        "reason": "NamespaceTaken",
        "message": "It belongs to something else.",
    }
    say(api, name, {"conditions": [stalled]})
    said = run("host", "add", name, "--zone", "z1")
    assert (said.code, said.out) == (1, "")
    assert "It belongs to something else." in said.err


def test_a_namespace_that_still_goes_is_waited_for(cluster: NativeCluster, api: Cluster, name: str) -> None:
    """Something in the namespace of an earlier host of that name keeps it."""
    home = host_namespace(name)
    api.create(Host.KIND, {"metadata": {"name": name}, "spec": {"zone": "z1"}})
    api.create(NAMESPACE, {"metadata": {"name": home}})
    api.create(SECRET, {"metadata": {"name": "keeps", "finalizers": ["example.com/keeps"]}}, home)
    try:
        with pytest.raises(NamespaceTaken):
            reconcile(cluster, api, name)
        api.delete(NAMESPACE, home)
        with pytest.raises(NamespaceEnding):
            reconcile(cluster, api, name)
    finally:
        api.patch(SECRET, "keeps", {"metadata": {"finalizers": None}}, home)


def test_a_zone_that_is_not_there(run: Run, api: Cluster, name: str) -> None:
    said = run("host", "add", name, "--zone", f"z-{name}")
    assert said.code == 1
    assert "z1" in said.err
    assert "--create-zone" in said.err
    assert api.find(Host.KIND, name) is None


@pytest.mark.parametrize(
    "words",
    [
        ["--ttl", "60"],
        ["--ttl", "7200"],
        ["--server", "http://api.example:8080"],
        ["--output", "/not/there/join.json"],
        ["--certificate-authority", "/not/there.pem"],
        ["--certificate-authority", "/etc/hostname"],
    ],
)
def test_a_command_line_that_makes_no_sense_makes_no_host(run: Run, api: Cluster, name: str, words: list[str]) -> None:
    assert run("host", "add", name, "--zone", "z1", *words).code == 2
    assert api.find(Host.KIND, name) is None


def test_list_show_cordon_uncordon(run: Run, api: Cluster, name: str) -> None:
    api.create(Host.KIND, {"metadata": {"name": name}, "spec": {"zone": "z1"}})
    ready = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "LeaseExpired",
        "message": "The agent has stopped renewing its Lease.",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    total, promised = {"cpus": 8, "memory": 16 * 2**30}, {"cpus": 2, "memory": 2**30}
    say(
        api,
        name,
        {"phase": "Unknown", "instances": 1, "allocatable": total, "allocated": promised, "conditions": [ready]},
    )
    row = next(line for line in run("host", "list").out.splitlines() if line.startswith(name))
    assert row.split()[1:7] == ["z1", "Unknown", "LeaseExpired", "1", "2/8", "1.0/16.0Gi"]
    shown = run("host", "show", name).out
    for words in ("LeaseExpired", "stopped renewing", "2/8 CPUs, 1 GiB/16 GiB", "Machines on it"):
        assert words in shown
    assert "leaves alone" not in shown
    api.create(NAMESPACE, {"metadata": {"name": host_namespace(name)}})
    uuid = "11111111-2222-3333-4444-555555555555"
    api.create(UnmanagedInstance.KIND, {"metadata": {"name": uuid}, "spec": {}}, host_namespace(name))
    disks = [{"target": "vda", "source": "/srv/a.qcow2"}, {"target": "sda", "device": "cdrom"}]
    status = {"name": "by-hand", "state": "shut off", "cpus": 2, "memory": "2Gi", "disks": disks}
    path = UnmanagedInstance.KIND.path(host_namespace(name), uuid, "status")
    api.request("PATCH", path, body={"status": status}, content_type="application/merge-patch+json")
    shown = run("host", "show", name).out
    assert "1 domain that Kumulus leaves alone" in shown
    row = next(line for line in shown.splitlines() if "by-hand" in line)
    assert row.split() == ["by-hand", "shut", "off", "2", "2", "GiB", "2", "0", uuid]
    assert run("host", "cordon", name).out == f"host.fabric.kumulus.io/{name} cordoned\n"
    assert api.get(Host.KIND, name)["spec"]["unschedulable"] is True
    assert run("host", "uncordon", name).code == 0
    assert api.get(Host.KIND, name)["spec"]["unschedulable"] is False


def test_a_host_with_machines_is_not_removed_by_accident(run: Run, api: Cluster, name: str, namespace: str) -> None:
    api.create(Host.KIND, {"metadata": {"name": name, "finalizers": ["kumulus.io/cleanup"]}, "spec": {"zone": "z1"}})
    spec = {"resources": {"cpus": 1, "memory": "128Mi"}}
    api.create(VirtualMachine.KIND, {"metadata": {"name": "web1"}, "spec": spec}, namespace)
    path = VirtualMachine.KIND.path(namespace, "web1", "status")
    api.request("PATCH", path, body={"status": {"host": name}}, content_type="application/merge-patch+json")
    said = run("host", "remove", name)
    assert said.code == 1
    assert f"{namespace}/web1" in said.err
    assert "web1" in run("host", "show", name).out
    assert "deletionTimestamp" not in api.get(Host.KIND, name)["metadata"]
    assert run("host", "remove", name, "--force-detach", "--no-wait").code == 0
    after = api.get(Host.KIND, name)["metadata"]
    assert "deletionTimestamp" in after
    assert after["annotations"][FORCE_DETACH] == "true"
    late = run("host", "remove", name, "--force-detach", "--timeout", "1")
    assert late.code == 1
    assert "still there" in late.err
    api.patch(Host.KIND, name, {"metadata": {"finalizers": None}})
    deadline.until(lambda: api.find(Host.KIND, name) is None, "the host's end", seconds=10)
