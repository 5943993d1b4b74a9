"""Machines as endpoints of Kubernetes Services against a real API server: who is published, what is said, and few writes.

What hosts do is written by the test, as in `test_network.py`.
"""

from __future__ import annotations

import pytest

from kumulus.api.base import Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.network import NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, Router
from kumulus.kube import errors
from kumulus.kube.builtin import ENDPOINT_SLICE, SERVICE
from kumulus.kube.client import KubeClient
from kumulus.kube.service import PUBLISHED
from kumulus_controllers.network.endpoints import EndpointsReconciler
from kumulus_controllers.network.endpoints_module import EndpointsSettings
from kumulus_lab.cluster import NativeCluster
from tests.component.cloud import condition
from tests.component.test_network import NOW, Brain, Raw, Stage, message, reason, settle, stage
from tests.component.test_router import outside

__all__ = ["stage"]  # the fixture

pytestmark = pytest.mark.cluster

LABEL = "network.kumulus.io/vm-network"
PORTS = [{"name": "http", "port": 80, "targetPort": 8080}]


def brain(client: KubeClient, *cluster_ranges: str) -> Brain:
    """A controller process with the module."""
    made = Brain(client)
    settings = EndpointsSettings.model_validate({"cluster_ranges": cluster_ranges})
    endpoints = EndpointsReconciler(made.services, settings.cluster_ranges)
    endpoints.attach(lambda key, *, urgent=False: None)
    made.reconcilers = (*made.reconcilers, endpoints)
    return made


async def service(stage: Stage, name: str = "site", network: str = "net", **spec: object) -> Raw:
    body = {"selector": {"app": "web"}, "ports": PORTS, **spec}
    return await stage.put(SERVICE, name, body, namespace=stage.namespace, labels={LABEL: network})


async def machine(stage: Stage, name: str, app: str = "web", interface: Raw | None = None) -> None:
    size = {"resources": {"cpus": 1, "memory": "64Mi"}, "zone": stage.namespace}
    spec = {**size, "interfaces": [interface or {"name": "eth0", "network": "net"}]}
    await stage.put(VirtualMachine.KIND, name, spec, namespace=stage.namespace, labels={"app": app})


async def floating(stage: Stage, *names: str) -> None:
    for name in names:
        target = {"externalNetwork": stage.namespace, "target": {"interface": f"{name}-eth0"}}
        await stage.make(FloatingIP, name, **target)


async def get(stage: Stage, name: str = "site") -> Raw:
    return await stage.client.get(SERVICE, name, stage.namespace)


async def slices(stage: Stage) -> list[Raw]:
    return await stage.listed(ENDPOINT_SLICE, stage.namespace)


async def published(stage: Stage) -> dict[str, tuple[str, bool]]:
    """Address and readiness, by machine."""
    found = [endpoint for item in await slices(stage) for endpoint in item["endpoints"] or ()]
    return {e["targetRef"]["name"]: (e["addresses"][0], e["conditions"]["ready"]) for e in found}


async def events(stage: Stage, name: str = "site") -> list[tuple[str, str]]:
    """What `kubectl describe service` shows at its end."""
    done = await stage.client.request("GET", f"/api/v1/namespaces/{stage.namespace}/events")
    mine = [
        item
        for item in done["items"]
        if item["involvedObject"] | {"kind": "Service", "name": name} == item["involvedObject"]
    ]
    return [(item["type"], item["reason"]) for item in sorted(mine, key=lambda item: item["eventTime"])]


async def test_the_life_of_a_service(stage: Stage) -> None:
    """From a network that nobody outside reaches to endpoints that come and go with machines; nothing is written without
    need; and what others wrote of the Service stays."""
    cloud = brain(stage.client)
    await stage.network()
    for name, app in (("one", "web"), ("two", "web"), ("other", "db")):
        await machine(stage, name, app)
    made = await service(stage)
    theirs = {"type": "example.com/Known", "status": "True", "reason": "X", "message": ""}
    body = {"status": {"conditions": [theirs | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]}}
    await stage.client.patch(SERVICE, "site", body, stage.namespace, subresource="status")
    await settle(cloud, stage)
    found = await get(stage)
    assert await slices(stage) == [], "addresses of the network mean nothing outside"
    assert reason(found, PUBLISHED) == "NotReachable" and "Machines one, two cannot be" in message(found, PUBLISHED)
    assert (await events(stage))[-1] == ("Warning", "NotReachable")

    async with outside(stage):
        await stage.make(Router, "main", networks=["net"], externalNetwork=stage.namespace)
        await settle(cloud, stage)
        await floating(stage, "one", "two")
        await settle(cloud, stage)
        assert await published(stage) == {"one": ("203.0.113.11", True), "two": ("203.0.113.12", True)}
        (item,) = await slices(stage)
        vm = await stage.get(VirtualMachine, "one")
        assert item["addressType"] == "IPv4"
        assert item["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
        assert item["metadata"]["labels"] == {
            "kubernetes.io/service-name": "site",
            "endpointslice.kubernetes.io/managed-by": "network.kumulus.io",
        }
        assert [owner["uid"] for owner in item["metadata"]["ownerReferences"]] == [made["metadata"]["uid"]]
        assert item["endpoints"][0]["targetRef"]["uid"] == vm["metadata"]["uid"]
        assert item["endpoints"][0]["conditions"] == {"ready": True, "serving": True, "terminating": False}
        assert "nodeName" not in item["endpoints"][0]
        found = await get(stage)
        assert condition(found, PUBLISHED)["status"] == "True" and reason(found, PUBLISHED) == "Published"
        assert reason(found, "example.com/Known") == "X", "what others wrote stays"
        assert found["spec"] == made["spec"]

        # A machine that is off is none that answers, one that is deleted is none. A controller that has just started
        # writes nothing.
        await stage.change(VirtualMachine, "two", powerState="Stopped")
        await settle(cloud, stage)
        assert await published(stage) == {"one": ("203.0.113.11", True), "two": ("203.0.113.12", False)}
        before = [item["metadata"]["resourceVersion"] for item in (*await slices(stage), await get(stage))]
        told = await events(stage)
        await settle(brain(stage.client), stage)
        assert [i["metadata"]["resourceVersion"] for i in (*await slices(stage), await get(stage))] == before
        assert await events(stage) == told and len(told) <= 6, told
        await stage.delete(VirtualMachine, "two")
        await settle(cloud, stage)
        assert await published(stage) == {"one": ("203.0.113.11", True)}

        # What somebody writes into a slice of ours is put right; slices of others are left alone.
        foreign = {"addresses": ["198.51.100.9"], "conditions": {"ready": True}}
        name = (await slices(stage))[0]["metadata"]["name"]
        await stage.client.patch(ENDPOINT_SLICE, name, {"endpoints": [foreign]}, stage.namespace)
        other = {"metadata": {"name": "by-hand", "labels": {"kubernetes.io/service-name": "site"}}, "ports": []}
        await stage.client.create(ENDPOINT_SLICE, {**other, "addressType": "IPv4", "endpoints": []}, stage.namespace)
        await settle(brain(stage.client), stage)
        assert await published(stage) == {"one": ("203.0.113.11", True)}

        # Without the label it is no concern of ours, and with it again it is.
        for network, wanted in ((None, {}), ("net", {"one": ("203.0.113.11", True)})):
            await stage.client.patch(SERVICE, "site", {"metadata": {"labels": {LABEL: network}}}, stage.namespace)
            await settle(cloud, stage)
            assert await published(stage) == wanted
        await stage.client.patch(SERVICE, "site", {"metadata": {"labels": {LABEL: None}}}, stage.namespace)
        await settle(brain(stage.client), stage)
        assert [item["metadata"]["name"] for item in await slices(stage)] == ["by-hand"]
        conditions = (await get(stage))["status"]["conditions"]
        assert [one["type"] for one in conditions] == ["example.com/Known"]

        # A namesake gets slices of its own.
        await stage.client.patch(SERVICE, "site", {"metadata": {"labels": {LABEL: "net"}}}, stage.namespace)
        await settle(cloud, stage)
        await stage.client.delete(SERVICE, "site", stage.namespace)
        made = await service(stage, clusterIP="None")
        await settle(cloud, stage)
        (item,) = [item for item in await slices(stage) if item["metadata"]["name"] != "by-hand"]
        assert item["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
        assert (
            item["endpoints"][0]["hostname"] == "one" and "service.kubernetes.io/headless" in item["metadata"]["labels"]
        )
        await stage.client.delete(SERVICE, "site", stage.namespace)
        await settle(cloud, stage)
        assert [item["metadata"]["name"] for item in await slices(stage)] == ["by-hand"]

        await stage.delete(FloatingIP, "one")
        await stage.delete(FloatingIP, "two")
        await stage.delete(Router, "main")
        await settle(cloud, stage)


async def test_a_tenant_cannot_have_addresses_published_that_he_only_names(stage: Stage) -> None:
    """CVE-2021-25740. His network has the range of the cluster's Services, or of somebody's pods."""
    cloud = brain(stage.client)
    await stage.network(cidrs=["10.96.0.0/24"])
    await stage.make(NetworkInterface, "nic", network="net", addresses=["10.96.0.7"])
    await machine(stage, "one", interface={"name": "eth0", "interface": "nic"})
    await service(stage)
    async with outside(stage):
        await stage.client.patch(ExternalNetwork.KIND, stage.namespace, {"spec": {"allowRouted": True}})
        await stage.make(Router, "main", networks=["net"], externalNetwork=stage.namespace, sourceNAT=False)
        await settle(cloud, stage)
        assert reason(await stage.get(Router, "main")) == "Active"
        assert await slices(stage) == [] and reason(await get(stage), PUBLISHED) == "NotReachable"
        assert f"ExternalNetwork {stage.namespace}, spec.routed" in message(await get(stage), PUBLISHED)
        # Not even when the operator says so by mistake: it is the range of the cluster's Services.
        routed = [{"cidr": "10.96.0.0/24", "namespace": stage.namespace}]
        await stage.client.patch(ExternalNetwork.KIND, stage.namespace, {"spec": {"routed": routed}})
        await settle(cloud, stage)
        assert await slices(stage) == []
        await stage.delete(Router, "main")
        await settle(cloud, stage)


async def test_a_range_that_is_routed_needs_no_translation(stage: Stage) -> None:
    await stage.network(cidrs=["10.0.0.0/24", "fd00:1::/64"])
    await machine(stage, "one")
    await service(stage)
    async with outside(stage):
        routed = [{"cidr": "10.0.0.0/16", "namespace": stage.namespace}]
        spec = {"allowRouted": True, "routed": routed}
        await stage.client.patch(ExternalNetwork.KIND, stage.namespace, {"spec": spec})
        await stage.make(Router, "main", networks=["net"], externalNetwork=stage.namespace, sourceNAT=False)
        await settle(brain(stage.client), stage)
        assert await published(stage) == {"one": ("10.0.0.3", True)}
        await settle(brain(stage.client, "10.0.0.0/24"), stage)
        assert await published(stage) == {}, "the operator says that it is the pods'"
        await stage.delete(Router, "main")
        await settle(brain(stage.client), stage)


async def test_bad_input_is_told(stage: Stage) -> None:
    await stage.network()
    await machine(stage, "one")
    named = [{"name": "http", "port": 80, "targetPort": "http"}]
    refused: list[tuple[Raw, str]] = [
        ({"selector": None}, "spec.selector: set it to labels of the VirtualMachines"),
        ({"network": ""}, "is the name of the Network"),
        ({"type": "ExternalName", "externalName": "example.com", "ports": None}, "spec.type: a Service of the type"),
    ]
    for spec, said in refused:
        with pytest.raises(errors.Refused, match=said):
            await service(stage, "refused", **spec)
    # What was there without the label can be labelled when it is right, and is let go in any case.
    bare = {"type": "ExternalName", "externalName": "example.com"}
    await stage.put(SERVICE, "elsewhere", bare, namespace=stage.namespace)
    with pytest.raises(errors.Refused, match="has no endpoints"):
        await stage.client.patch(SERVICE, "elsewhere", {"metadata": {"labels": {LABEL: "net"}}}, stage.namespace)

    await service(stage, "names-nothing", network="nothing")
    await service(stage, "named", ports=named)
    await service(stage, "no-ports", clusterIP="None", ports=None, selector={"app": "nobody"})
    await settle(brain(stage.client), stage)
    wanted = {
        "names-nothing": ("NetworkNotFound", "There is no Network nothing"),
        "named": ("NamedTargetPort", "http (of port 80): set targetPort to a number"),
        "no-ports": ("NoMachines", "No VirtualMachine of the namespace has the labels"),
    }
    for name, (why, said) in wanted.items():
        found = await get(stage, name)
        assert reason(found, PUBLISHED) == why and said in message(found, PUBLISHED), name
        assert (await events(stage, name))[-1][1] == why


async def test_slices_are_nobody_elses_and_the_controllers_write_nothing_else_of_services(
    stage: Stage, cluster: NativeCluster
) -> None:
    """By the roles and policies that are installed, with the controllers' own token."""
    here = ("-n", stage.namespace)
    cluster.kubectl_run(*here, "create", "rolebinding", "tenant", "--clusterrole=admin", "--user=alice")
    for verb in ("create", "update", "patch", "delete"):
        done = cluster.kubectl_run(*here, "auth", "can-i", verb, "endpointslices", "--as=alice", check=False)
        assert done.stdout.strip() == "no", verb
    owner = (await service(stage, type="LoadBalancer"))["metadata"]["uid"]
    token = cluster.kubectl_run("-n", "kumulus-system", "create", "token", "kumulus-controllers").stdout.strip()
    mine = KubeClient.with_token(cluster.server, cluster.certificate_authority, lambda: token, user_agent="test")

    manager = {"endpointslice.kubernetes.io/managed-by": "network.kumulus.io"}
    site = {**manager, "kubernetes.io/service-name": "site"}

    def piece(name: str, labels: Raw, of: str = "site", **target: str) -> Raw:
        by = {"apiVersion": "v1", "kind": "Service", "name": of, "uid": owner, "controller": True}
        metadata = {"name": name, "labels": labels, "ownerReferences": [by]}
        ref = {"kind": "VirtualMachine", "namespace": stage.namespace, "name": "one", **target}
        there = [{"addresses": ["203.0.113.66"], "conditions": {}, "targetRef": ref}]
        return {"metadata": metadata, "addressType": "IPv4", "endpoints": there, "ports": []}

    async def patch(kind: Kind, name: str, body: Raw, subresource: str | None = None) -> Raw:
        return await mine.patch(kind, name, body, stage.namespace, subresource=subresource)

    said = {"type": PUBLISHED, "status": "True", "reason": "X", "message": "", "lastTransitionTime": NOW}
    try:
        await mine.create(ENDPOINT_SLICE, piece("ours", site), stage.namespace)
        await patch(ENDPOINT_SLICE, "ours", {"metadata": {"labels": {"service.kubernetes.io/headless": ""}}})
        for body, why in (
            (piece("more", manager), "is controlled by the Service"),
            (piece("more", site, of="else"), "is controlled by the Service"),
            (piece("more", site, kind="Pod"), "VirtualMachines of the namespace"),
            (piece("more", site, namespace="else"), "VirtualMachines of the namespace"),
        ):
            with pytest.raises(errors.Refused, match=why):
                await mine.create(ENDPOINT_SLICE, body, stage.namespace)
        with pytest.raises(errors.Refused, match="VirtualMachines of the namespace"):
            await patch(ENDPOINT_SLICE, "ours", {"endpoints": [{"addresses": ["203.0.113.9"]}]})
        api = {**manager, "kubernetes.io/service-name": "kubernetes"}
        for body, namespace in (
            (piece("more", site, namespace="kube-system"), "kube-system"),
            (piece("more", api, of="kubernetes", namespace="default"), "default"),
        ):
            with pytest.raises(errors.Refused, match="the cluster's own Services"):
                await mine.create(ENDPOINT_SLICE, body, namespace)
        assert await mine.request("GET", "/apis/networking.k8s.io/v1/servicecidrs"), "whose ranges are never published"
        await stage.client.create(ENDPOINT_SLICE, piece("theirs", {}), stage.namespace)
        with pytest.raises(errors.Refused, match="and no others"):
            await mine.create(ENDPOINT_SLICE, piece("more", {}), stage.namespace)
        with pytest.raises(errors.Refused, match="and no others"):
            await patch(ENDPOINT_SLICE, "theirs", {"metadata": {"labels": manager}})
        with pytest.raises(errors.Refused, match="and no others"):
            await mine.delete(ENDPOINT_SLICE, "theirs", stage.namespace)
        await mine.delete(ENDPOINT_SLICE, "ours", stage.namespace)

        await patch(SERVICE, "site", {"status": {"conditions": [said]}}, "status")
        for status in (
            {"loadBalancer": {"ingress": [{"ip": "203.0.113.66"}]}},
            {"conditions": [said, {**said, "type": "example.com/Theirs"}]},
        ):
            with pytest.raises(errors.Refused, match="and nothing else"):
                await patch(SERVICE, "site", {"status": status}, "status")
        with pytest.raises(errors.Refused, match="nothing of a Service but its status"):
            await patch(SERVICE, "site", {"metadata": {"labels": {"a": "b"}}}, "status")
        with pytest.raises(errors.Refused, match="cannot patch resource"):
            await patch(SERVICE, "site", {"spec": {"externalIPs": ["203.0.113.66"]}})
    finally:
        await mine.close()
