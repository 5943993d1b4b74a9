"""What a machine is told of itself, in the shapes that guests know: EC2, OpenStack and NoCloud. Pure.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html and
https://docs.openstack.org/nova/latest/user/metadata.html decide the names, cloud-init's documentation those of NoCloud.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import yaml

from kumulus_agents.metadata.records import MachineRecord, NicRecord

Tree = Mapping[str, "Tree | str"]

EC2_VERSIONS = ("1.0", "2009-04-04", "2016-09-02", "2021-03-23", "latest")
OPENSTACK_VERSIONS = ("2012-08-10", "2015-10-15", "2018-08-27", "latest")
METADATA = "169.254.169.254"
META_DATA, USER_DATA, NETWORK_CONFIG = "meta-data", "user-data", "network-config"
PARSED_MOST = 1 << 19
"""Characters of meta data beyond which nobody looks into them; they are handed on as they are."""


def find(at: Tree | str, path: str) -> str | None:
    """What is at that path, beginning with a slash: a text, or the names below it. None: nothing."""
    for part in path.strip("/").split("/") if path.strip("/") else ():
        if isinstance(at, str) or part not in at:
            return None
        at = at[part]
    return at if isinstance(at, str) else "\n".join(_listed(at))


def tree(machine: MachineRecord) -> Tree:
    """Everything the machine may ask. Meta data that cannot be read are as good as none. Takes up to some seconds: what is
    in them is a tenant's."""
    bare = {"instance-id": machine.uid, "local-hostname": machine.name}
    try:
        return _tree(machine, {**bare, **_given(machine)})
    except Exception:  # of the parser, or of a value that it made; there are many
        return _tree(machine, bare)


def _tree(machine: MachineRecord, said: Mapping[str, Any]) -> Tree:
    ec2 = _ec2(machine, said)
    nocloud: dict[str, Tree | str] = {
        META_DATA: machine.seed.get(META_DATA) or yaml.safe_dump(dict(said)),
        USER_DATA: machine.seed.get(USER_DATA, ""),
        "vendor-data": "",
    }
    if NETWORK_CONFIG in machine.seed:
        nocloud[NETWORK_CONFIG] = machine.seed[NETWORK_CONFIG]
    return {
        **dict.fromkeys(EC2_VERSIONS, ec2),
        "openstack": dict.fromkeys(OPENSTACK_VERSIONS, _openstack(machine, said)),
        "nocloud": nocloud,
    }


class _Plain(yaml.SafeLoader):
    """Reads no references: with them a few lines stand for more than there is memory. Not the loader of libyaml, which
    crashes on what is nested deeply."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references are not read")
        return super().compose_node(parent, index)


def _given(machine: MachineRecord) -> Mapping[str, Any]:
    """What its meta data say. Raises what the parser does."""
    text = machine.seed.get(META_DATA, "")
    given = yaml.load(text, _Plain) if len(text) <= PARSED_MOST else None  # noqa: S506 - it is a SafeLoader
    return given if isinstance(given, dict) else {}


def _keys(said: Mapping[str, Any]) -> list[str]:
    found = said.get("public-keys")
    return [str(key) for key in found] if isinstance(found, list) else []


def _ec2(machine: MachineRecord, said: Mapping[str, Any]) -> Tree:
    hostname = str(said["local-hostname"])
    nics = list(machine.nics.values())
    v4 = [address for nic in nics for address in nic.addresses if ":" not in address]
    meta: dict[str, Tree | str] = {
        "instance-id": str(said["instance-id"]),
        "hostname": hostname,
        "local-hostname": hostname,
        "instance-type": "kumulus",
        "ami-id": "none",
        "placement": {"availability-zone": "kumulus"},
        "security-groups": "",
    }
    if v4:
        meta["local-ipv4"] = v4[0]
    if nics:
        meta["mac"] = nics[0].mac
        macs = {
            nic.mac: {
                "mac": nic.mac,
                "device-number": str(number),
                "interface-id": nic.name,
                "local-ipv4s": "\n".join(address for address in nic.addresses if ":" not in address),
                "ipv6s": "\n".join(address for address in nic.addresses if ":" in address),
            }
            for number, nic in enumerate(nics)
        }
        meta["network"] = {"interfaces": {"macs": macs}}
    if keys := _keys(said):
        meta["public-keys"] = {str(number): {"openssh-key": key} for number, key in enumerate(keys)}
    root: dict[str, Tree | str] = {META_DATA: meta, "dynamic": {"instance-identity": {"document": _identity(meta, v4)}}}
    if machine.seed.get(USER_DATA):
        root[USER_DATA] = machine.seed[USER_DATA]
    return root


def _identity(meta: Mapping[str, Tree | str], v4: list[str]) -> str:
    """The document of instance-identity, which cloud-init asks for on AWS again and again until there is one. Nobody signs it: it
    proves nothing."""
    said = {
        "accountId": None,
        "architecture": "x86_64",
        "availabilityZone": "kumulus",
        "imageId": meta["ami-id"],
        "instanceId": meta["instance-id"],
        "instanceType": meta["instance-type"],
        "privateIp": v4[0] if v4 else None,
        "region": "kumulus",
        "version": "2017-09-30",
    }
    return json.dumps(said)


def _openstack(machine: MachineRecord, said: Mapping[str, Any]) -> Tree:
    keys = {f"key{number}": key for number, key in enumerate(_keys(said))}
    known = ("instance-id", "local-hostname", "public-keys")
    meta = {
        "uuid": machine.uid,
        "name": machine.name,
        "hostname": str(said["local-hostname"]),
        "project_id": machine.namespace,
        "availability_zone": "kumulus",
        "launch_index": 0,
        "meta": {str(key): str(value) for key, value in said.items() if key not in known},
        **({"public_keys": keys} if keys else {}),
    }
    root: dict[str, Tree | str] = {
        "meta_data.json": json.dumps(meta),
        "network_data.json": json.dumps(_network_data(machine)),
        "vendor_data.json": "{}",
    }
    if machine.seed.get(USER_DATA):
        root["user_data"] = machine.seed[USER_DATA]
    return root


def _network_data(machine: MachineRecord) -> dict[str, Any]:
    links: list[dict[str, Any]] = []
    networks: list[dict[str, Any]] = []
    services: list[dict[str, Any]] = []
    for nic in machine.nics.values():
        links.append({"id": nic.name, "type": "phy", "ethernet_mac_address": nic.mac})
        for family, sign in (("ipv4", "."), ("ipv6", ":")):
            own = [address for address in nic.addresses if sign in address]
            if own and nic.dhcp:
                networks.append({"id": f"{nic.name}-{family}", "type": f"{family}_dhcp", "link": nic.name})
            elif own:
                networks += _static(nic, family, own)
        if not nic.dhcp and nic.addresses:
            services += [{"type": "dns", "address": subnet.service} for subnet in nic.subnets]
    return {"links": links, "networks": networks, "services": services}


def _static(nic: NicRecord, family: str, own: list[str]) -> Iterator[dict[str, Any]]:
    """Of a network that tells guests nothing: all that they have to set. The way to the world is told once."""
    told: set[str] = set()
    for number, address in enumerate(own):
        subnet = next((one for one in nic.subnets if ip_address(address) in ip_network(one.cidr)), None)
        routes = []
        if subnet is not None and subnet.cidr not in told:
            told.add(subnet.cidr)
            if subnet.gateway is not None:
                everything = ip_network("0.0.0.0/0" if family == "ipv4" else "::/0")
                routes.append(_route(everything, subnet.gateway))
            if family == "ipv4":
                routes.append(_route(ip_network(f"{METADATA}/32"), subnet.service))
        network = ip_network(subnet.cidr if subnet is not None else address)
        yield {
            "id": f"{nic.name}-{family}" + (f"-{number}" if number else ""),
            "type": family,
            "link": nic.name,
            "ip_address": address,
            "netmask": str(network.netmask),
            "routes": routes,
        }


def _route(network: IPv4Network | IPv6Network, gateway: str) -> dict[str, str]:
    return {"network": str(network.network_address), "netmask": str(network.netmask), "gateway": gateway}


def _listed(tree: Tree) -> list[str]:
    """Names below, directories with a slash; keys as `0=key0`, as EC2 has them."""
    if tree and all(name.isdigit() for name in tree):
        return [f"{name}=key{name}" for name in tree]
    return [name if isinstance(child, str) else f"{name}/" for name, child in tree.items()]
