"""Where machines would go, and which moves would make hosts even: `kumulusctl` on the objects of a real API server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.order_names import instance_order_name
from kumulus.api.placement_group import PlacementGroup
from kumulus.api.storage import Volume
from kumulus.cli.cluster import Cluster
from kumulus.kube.builtin import NAMESPACE
from tests import leftovers
from tests.component import test_cli
from tests.component.test_cli import Raw, Run

pytestmark = pytest.mark.cluster

namespace, run, api, tenant = test_cli.namespace, test_cli.run, test_cli.api, test_cli.tenant
"""The fixtures of the other tests of commands."""

READY = [
    {"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
]
GIB = 2**30


class Room:
    """Hosts of a zone of their own, and machines that are said to be on them."""

    def __init__(self, api: Cluster, namespace: str) -> None:
        self.api, self.namespace, self.zone = api, namespace, f"z-{secrets.token_hex(3)}"

    def host(self, name: str, memory: int, **spec: Any) -> None:
        full = f"{self.zone}-{name}"
        self.api.create(Host.KIND, {"metadata": {"name": full}, "spec": {"zone": self.zone, **spec}})
        status = {"phase": "Ready", "allocatable": {"cpus": 64, "memory": memory * GIB}, "conditions": READY}
        self._say(Host.KIND.path(None, full, "status"), status)
        self.api.create(NAMESPACE, {"metadata": {"name": host_namespace(full)}})
        leftovers.leave(host_namespace(full))

    def machine(
        self, name: str, host: str | None = None, memory: int = 1, labels: Raw | None = None, **spec: Any
    ) -> Raw:
        size = {"cpus": 1, "memory": f"{memory}Gi"}
        meta = {"name": name, "labels": labels or {}}
        made = {"metadata": meta, "spec": {"resources": size, "zone": self.zone, **spec}}
        if host is not None:
            self.api.create(VirtualMachine.KIND, made, self.namespace)
            status = {"phase": "Running", "host": f"{self.zone}-{host}", "epoch": 1, "resources": size}
            self._say(VirtualMachine.KIND.path(self.namespace, name, "status"), status)
            self._ordered(name, f"{self.zone}-{host}", memory)
        return {"apiVersion": VirtualMachine.KIND.api_version, "kind": "VirtualMachine", **made}

    def _ordered(self, name: str, host: str, memory: int) -> None:
        """The machine's order there, of which its agent says that it runs."""
        uid = self.api.get(VirtualMachine.KIND, name, self.namespace)["metadata"]["uid"]
        size = {"cpus": 1, "memory": memory * GIB}
        instance = {"uid": uid, "epoch": 1, "power": "Running", "restartPolicy": "Always", **size}
        for_ = {"kind": "VirtualMachine", "namespace": self.namespace, "name": name, "uid": uid}
        body = {"metadata": {"name": instance_order_name(uid)}}
        body |= {"spec": {"type": "Instance", "for": for_, "instance": instance}}
        room = host_namespace(host)
        self.api.create(WorkOrder.KIND, body, room)
        status = {"observedGeneration": 1, "state": "Running", "instance": {"epoch": 1, **size}}
        self._say(WorkOrder.KIND.path(room, body["metadata"]["name"], "status"), status)

    def tunnels(self, *names: str) -> None:
        """Hosts that take guests from others, and send them."""
        for name in names:
            full = f"{self.zone}-{name}"
            self.api.create(HostReport.KIND, {"metadata": {"name": full}}, host_namespace(full))
            at = {"migration": {"address": "192.0.2.1", "port": 9413}}
            self._say(HostReport.KIND.path(host_namespace(full), full, "status"), at)

    def _say(self, path: str, status: Raw) -> None:
        self.api.request("PATCH", path, body={"status": status}, content_type="application/merge-patch+json")

    def hosts(self, body: Raw) -> Raw:
        """Those of the zone, by their short names."""
        mine = [host for host in body["hosts"] if host["name"].startswith(self.zone)]
        return {host["name"].removeprefix(f"{self.zone}-"): host for host in mine}


@pytest.fixture
def room(api: Cluster, namespace: str) -> Iterator[Room]:
    made = Room(api, namespace)
    api.create(Zone.KIND, {"metadata": {"name": made.zone}, "spec": {}})
    try:
        yield made
    finally:
        for raw in api.objects(Host.KIND):
            if raw["spec"]["zone"] == made.zone:
                api.delete(Host.KIND, raw["metadata"]["name"])
        api.delete(Zone.KIND, made.zone)


def test_where_machines_of_a_file_would_go_is_said_before_they_are_made(
    run: Run, room: Room, api: Cluster, namespace: str, tmp_path: Path, tenant: Path
) -> None:
    room.host("a", 8, taints=[{"key": "old", "effect": "PreferNoSchedule"}])
    room.host("b", 4)
    room.host("c", 1)
    room.machine("web-0", "a", labels={"app": "web"})
    group = {"policy": "AntiAffinity", "selector": {"matchLabels": {"app": "web"}}}
    documents = [
        {
            "apiVersion": PlacementGroup.KIND.api_version,
            "kind": "PlacementGroup",
            "metadata": {"name": "web"},
            "spec": group,
        },
        room.machine("web-1", memory=2, labels={"app": "web"}),
        room.machine("web-2", memory=2, labels={"app": "web"}),
        room.machine("other", disks=[{"name": "data", "volumeTemplate": {"size": "1Gi"}}]),
    ]
    file = tmp_path / "machines.yaml"
    file.write_text(yaml.safe_dump_all(documents[:3]))
    said = run("vm", "explain", "--dry-run", "-f", str(file), "-o", "json")
    assert said.code == 3, said.err
    first, second = json.loads(said.out)
    assert (first["name"], first["host"], first["refusal"]) == ("web-1", f"{room.zone}-b", None)
    hosts = room.hosts(first)
    assert hosts["b"]["fits"] and hosts["b"]["scores"] == {"preferred-taints": 1.0}
    assert hosts["a"]["why"] == ["with a machine of the same PlacementGroup web (web-0)"]
    assert hosts["c"]["why"] == ["without enough memory (needs 2Gi, has 1Gi left)"]
    assert second["host"] is None and "of the same PlacementGroup web" in second["refusal"]
    assert room.hosts(second)["b"]["why"] == ["with a machine of the same PlacementGroup web (web-1)"]
    people = run("vm", "explain", "--dry-run", "-f", str(file))
    assert people.code == 3 and f"web-1 would go to host {room.zone}-b." in people.out
    assert "web-2 would go nowhere: 0 of" in people.out
    assert not api.objects(PlacementGroup.KIND, namespace), "nothing was made"
    assert [vm["metadata"]["name"] for vm in api.objects(VirtualMachine.KIND, namespace)] == ["web-0"]

    file.write_text(yaml.safe_dump(documents[3]))
    said = run("vm", "explain", "--dry-run", "-f", str(file))
    assert said.code == 3 and "storage pool" in said.out
    assert not api.objects(Volume.KIND, namespace)

    wrong = {**documents[1], "spec": {**documents[1]["spec"], "placement": {"profile": "Random"}}}
    file.write_text(yaml.safe_dump(wrong))
    said = run("vm", "explain", "--dry-run", "-f", str(file))
    assert said.code == 1 and "spec.placement.profile" in said.err
    file.write_text("a: b")
    assert "no manifest" in run("vm", "explain", "--dry-run", "-f", str(file)).err
    for words in (["--dry-run"], ["-f", str(file)], ["web-0", "--dry-run", "-f", str(file)], []):
        assert run("vm", "explain", *words).code == 2

    said = run("vm", "explain", "web-0", "--hosts", "-o", "json")
    assert said.code == 0 and json.loads(said.out)["host"] == f"{room.zone}-b", "were it placed now"
    refused = run("vm", "explain", "web-0", "--hosts", kubeconfig=tenant)
    assert refused.code == 1 and "Ask the operator" in refused.err


def test_moves_that_make_hosts_even_are_shown_and_nothing_is_moved(
    run: Run, room: Room, api: Cluster, namespace: str
) -> None:
    for name in ("a", "b", "c"):
        room.host(name, 16)
    for number in range(4):
        room.machine(f"full-{number}", "a", memory=3, labels={"app": "x"})
    none = run("host", "rebalance", "--zone", room.zone, "-o", "json")
    assert json.loads(none.out)["moves"] == [], "their hosts send no guests"
    room.tunnels("a", "b", "c")
    apart = {"affinity": {"vmAntiAffinity": {"required": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}}
    ]}}}  # fmt: skip
    room.machine("away", "a", memory=1, placement=apart)
    before = api.objects(VirtualMachine.KIND, namespace)
    said = run("host", "rebalance", "--zone", room.zone, "-o", "json")
    assert said.code == 0, said.err
    plan = json.loads(said.out)
    moves = [(move["name"], move["to"].rpartition("-")[2]) for move in plan["moves"]]
    assert moves[0][0] == "away" and "breaks a rule" in plan["moves"][0]["why"]
    assert len(moves) == 3, "two machines of 3 GiB go to the host that is left"
    assert {to for name, to in moves[1:]} == {({"b", "c"} - {moves[0][1]}).pop()}
    assert max(plan["after"].values()) < max(plan["before"].values())
    people = run("host", "rebalance", "--zone", room.zone)
    assert "This is a plan: nothing was moved; --apply" in people.out and "away" in people.out
    assert (
        len(json.loads(run("host", "rebalance", "--zone", room.zone, "--max-moves", "1", "-o", "json").out)["moves"])
        == 1
    )
    assert api.objects(VirtualMachine.KIND, namespace) == before

    kind = VirtualMachineMigration.KIND
    applied = run("host", "rebalance", "--zone", room.zone, "--max-moves", "2", "--apply", "--no-wait")
    assert applied.code == 0, applied.err
    made = api.objects(kind, namespace)
    assert {(raw["spec"]["vm"], raw["spec"]["targetHost"]) for raw in made} == {
        (move["name"], move["to"]) for move in plan["moves"][:2]
    }
    (label,) = {raw["metadata"]["labels"]["kumulus.io/rebalance"] for raw in made}
    assert f"-l kumulus.io/rebalance={label}" in applied.err
    again = json.loads(run("host", "rebalance", "--zone", room.zone, "-o", "json").out)
    moving = {raw["spec"]["vm"] for raw in made}
    assert not moving & {move["name"] for move in again["moves"]}, "what moves already is not in the plan"
    slow = run("host", "rebalance", "--zone", room.zone, "--apply", "--timeout", "1")
    assert slow.code == 1 and "Not all have moved after 1s. It goes on; to cancel" in slow.err
