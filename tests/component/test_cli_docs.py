"""Every manifest in the guides and examples is one that the API server takes, and bindings give what the guides say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.network import NetworkInterface
from kumulus.cli.cluster import Cluster
from kumulus.cli.people import main
from kumulus.kube.builtin import NAMESPACE
from kumulus_lab import deadline, examples
from kumulus_lab.cluster import NativeCluster
from kumulus_lab.lab import Wanted
from kumulus_lab.state import Hypervisor
from tests.conftest import new_lab

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("docs/user-guide.md", "docs/operator-guide.md")
START = ROOT / "docs" / "start.md"
QUICKSTART = ROOT / "examples" / "quickstart"
NETWORK = ROOT / "examples" / "network"
GITOPS = ROOT / "examples" / "gitops"
_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SCRIPT = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_RUNNING = ("vm", "logs")
"""What needs a machine that runs; the system tests have some."""


def section(guide: str, title: str) -> str:
    """A section of a guide, with those below it."""
    text = (ROOT / guide).read_text()
    head = re.search(rf"^(#+) {re.escape(title)}\n", text, re.MULTILINE)
    assert head is not None, f"{guide} has no section {title}"
    rest = text[head.end() :]
    end = re.search(rf"^#{{1,{len(head[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end is not None else rest


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in its scripts."""
    for block in _SCRIPT.findall(text):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def manifests() -> Iterator[str]:
    """Whole objects, not the pieces of them that the guides show too."""
    for page in (*(ROOT / guide for guide in GUIDES), START):
        for block in _BLOCK.findall(page.read_text()):
            if block.startswith("apiVersion:"):
                yield block


@pytest.mark.parametrize("manifest", list(manifests()))
def test_a_manifest_of_the_guides_is_taken(cluster: NativeCluster, module_namespace: str, manifest: str) -> None:
    cluster.kubectl_run(
        "-n",
        module_namespace,
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "-f",
        "-",
        stdin=manifest,
    )


_BINDING = re.compile(r"^kubectl (create (?:clusterrolebinding|rolebinding) .*)$", re.MULTILINE)


def test_the_bindings_of_the_operator_guide_give_tenants_their_rights(cluster: NativeCluster, namespace: str) -> None:
    """With the first, tenants see their machines; only with the second what is offered."""
    group = f"team-{namespace}"
    guide = (ROOT / "docs/operator-guide.md").read_text().replace("shop-team", group)
    commands = [shlex.split(line.replace("=shop", f"={namespace}"), comments=True) for line in _BINDING.findall(guide)]

    def sees(kind: str) -> bool:
        words = ("get", kind, "-n", namespace, "--as=alice", f"--as-group={group}")
        return cluster.kubectl_run(*words, check=False).returncode == 0

    role, catalog = commands
    offers = ("instancetypes", "clusterimages", "zones")
    try:
        cluster.kubectl_run(*role)
        deadline.until(lambda: sees("virtualmachines"), "the tenant's role", seconds=20)
        assert [sees(kind) for kind in offers] == [False] * 3
        cluster.kubectl_run(*catalog)
        deadline.until(lambda: all(sees(kind) for kind in offers), "the catalog", seconds=20)
        assert not sees("storagepools")
    finally:
        cluster.kubectl_run("delete", "clusterrolebinding", catalog[2], "--ignore-not-found")


def test_the_quickstart_applies_in_one_go_once_its_placeholders_are_filled_in(cluster: NativeCluster) -> None:
    rendered = "".join(file.read_text() for file in sorted(QUICKSTART.glob("*.yaml")))
    rendered = rendered.replace("${TINY_IMAGE_URL}", "https://images.example.com/tiny.qcow2")
    rendered = rendered.replace("${TINY_IMAGE_SHA256}", "a" * 64)
    kinds = [document["kind"] for document in yaml.safe_load_all(rendered)]
    assert kinds.count("VirtualMachine") == 3
    try:
        cluster.kubectl_run("apply", "-f", "-", stdin=rendered)
        told = cluster.kubectl_run("-n", "quickstart", "get", "vm,images,secrets", "-o", "name").stdout
        for name in ("hello-1", "hello-2", "hello-3", "image.storage.kumulus.io/tiny", "secret/hello-3-first-boot"):
            assert name in told
    finally:
        cluster.kubectl_run("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=rendered)


def test_the_examples_of_networks_are_taken(cluster: NativeCluster, namespace: str) -> None:
    for file in sorted(
        file
        for name in ("events/*", "network/*", "placement/*", "pool/*", "service/*", "operations/maintenance*")
        for file in (ROOT / "examples").glob(f"{name}.yaml")
    ):
        manifest = file.read_text().replace("namespace: quickstart", f"namespace: {namespace}")
        cluster.kubectl_run("apply", "--dry-run=server", "-f", "-", stdin=manifest)


@pytest.mark.parametrize("part", ["platform", "teams/shop/production"])
def test_the_example_of_a_repository_is_taken(cluster: NativeCluster, namespace: str, part: str) -> None:
    made = cluster.kubectl_run("kustomize", str(GITOPS / part)).stdout
    named = made.replace("namespace: shop", f"namespace: {namespace}").replace("name: shop", f"name: {namespace}")
    assert "kind: " in named
    cluster.kubectl_run("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=named)


def test_what_gitops_tools_are_told_to_apply_is_in_the_repository() -> None:
    files = (GITOPS / "clusters").rglob("*.yaml")
    objects = [item for file in files for item in yaml.safe_load_all(file.read_text())]
    paths = [item["spec"].get("path") or item["spec"].get("source", {}).get("path") for item in objects]
    told = [GITOPS / path for path in paths if path is not None]
    assert len(told) == 4 and all((path / "kustomization.yaml").is_file() for path in told)


def test_a_forgotten_placeholder_is_refused_with_the_fields_name(cluster: NativeCluster, namespace: str) -> None:
    image = (QUICKSTART / "3-image.yaml").read_text().replace("namespace: quickstart", f"namespace: {namespace}")
    done = cluster.kubectl_run("apply", "--dry-run=server", "-f", "-", stdin=image, check=False)
    assert done.returncode != 0
    assert "spec.source.http.url" in done.stderr
    assert "spec.checksum.sha256" in done.stderr


def test_every_command_about_networks_does_what_the_guides_say(
    cluster: NativeCluster, administrator: Cluster, namespace: str, tmp_path: Path
) -> None:
    """The objects of these sections are made, and the commands are run one after the other. No controller looks at them: what
    commands show of statuses is for other tests."""
    tenant = "".join(section(GUIDES[0], title) for title in ("Networks", "Load balancers", "Routers and floating IPs"))
    operator = section(GUIDES[1], "The way to the world")
    example = f"{namespace}-example"
    for path in NETWORK.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text().replace("namespace: quickstart", f"namespace: {example}"))
    places = {"examples/network/": str(tmp_path), "quickstart": example}
    offers = [block for block in _BLOCK.findall(operator) if block.startswith("apiVersion:")]
    hosts = ("h1", "h2")
    run = 0
    administrator.create(NAMESPACE, {"metadata": {"name": example}})
    try:
        for host in hosts:
            administrator.create(Host.KIND, {"metadata": {"name": host}, "spec": {"zone": namespace}})
        for manifest in offers:
            cluster.kubectl_run("apply", "-f", "-", stdin=manifest)
        for manifest in _BLOCK.findall(tenant):
            if manifest.startswith("apiVersion:"):
                cluster.kubectl_run("-n", namespace, "apply", "-f", "-", stdin=manifest)
        own = [(name, namespace) for name in ("web2-eth0", "db1-eth0", "my-nic")]
        for name, owner in (("web-1-eth0", example), ("web-2-eth0", example), *own):
            nic = {"metadata": {"name": name}, "spec": {"network": "front"}}  # as the machines' controller makes them
            administrator.create(NetworkInterface.KIND, nic, owner)
        interfaces = [{"name": "eth0", "network": "front"}]
        db = {"metadata": {"name": "db1"}, "spec": {"instanceType": "tiny", "interfaces": interfaces}}
        administrator.create(VirtualMachine.KIND, db, namespace)
        for written in (*commands(operator), *commands(tenant)):
            command, *words = [places.get(word, word) for word in written]
            if command == "kubectl" and words[0] != "kumulus":
                cluster.kubectl_run(*words)
            else:
                words = words[1:] if command == "kubectl" else words
                if tuple(word for word in words if word in _RUNNING) == _RUNNING:
                    continue
                # Nothing is attached here, so packets are dropped, or it cannot be told.
                answers = (0, 3, 4) if words[:2] == ["net", "trace"] else (0,)
                assert main(["--kubeconfig", str(cluster.kubeconfig), "-n", namespace, *words]) in answers, words
            run += 1
        assert run > 15
        assert administrator.get(Host.KIND, "h1")["metadata"]["labels"]["role"] == "gateway"
    finally:
        for host in hosts:
            administrator.delete(Host.KIND, host)
        for manifest in offers:
            cluster.kubectl_run("delete", "--ignore-not-found", "-f", "-", stdin=manifest)
        administrator.delete(NAMESPACE, example)


@pytest.mark.wide
def test_the_five_minute_start_works(tmp_path: Path) -> None:
    """On simulated hosts, as the demo has them, with the example that the demo begins with."""
    text = START.read_text()
    (manifest,) = _BLOCK.findall(text)
    (tmp_path / "mine.yaml").write_text(manifest)
    lab = new_lab()
    run = 0
    try:
        lab.up(Wanted(hosts=2, hypervisor=Hypervisor.SIMULATED))
        examples.apply(lab.control_plane, examples.render(lab, examples.QUICKSTART))
        for command, *words in commands(text):
            if command == "kubectl":
                lab.control_plane.kubectl_run(
                    *(str(tmp_path / word) if word == "mine.yaml" else word for word in words)
                )
            elif command == "kumulusctl":
                assert main(["--kubeconfig", str(lab.kubeconfig), *words]) == 0, words
            else:
                assert command in ("make", "eval"), command
                continue
            run += 1
    finally:
        lab.down()
    assert run > 8
