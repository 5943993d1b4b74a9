"""Every manifest in the guides and examples is one that the API server takes, and bindings give what the guides say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kumulus_lab import deadline
from kumulus_lab.cluster import NativeCluster

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("docs/user-guide.md", "docs/operator-guide.md")
QUICKSTART = ROOT / "examples" / "quickstart"
_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def manifests() -> Iterator[str]:
    """Whole objects, not the pieces of them that the guides show too."""
    for guide in GUIDES:
        for block in _BLOCK.findall((ROOT / guide).read_text()):
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


def test_a_forgotten_placeholder_is_refused_with_the_fields_name(cluster: NativeCluster, namespace: str) -> None:
    image = (QUICKSTART / "3-image.yaml").read_text().replace("namespace: quickstart", f"namespace: {namespace}")
    done = cluster.kubectl_run("apply", "--dry-run=server", "-f", "-", stdin=image, check=False)
    assert done.returncode != 0
    assert "spec.source.http.url" in done.stderr
    assert "spec.checksum.sha256" in done.stderr
