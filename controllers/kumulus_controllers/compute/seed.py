"""First-boot data (NoCloud) of a machine: the files of its seed. Pure but for `SeedSource`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kumulus.api.addresses import Address, is_v4
from kumulus.api.base import LocalSecretKey
from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_import import IMPORTED_BY, origin_of
from kumulus.api.network import Network
from kumulus.api.segments import Nic
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus_controllers.network.ranges import in_range

METADATA = "169.254.169.254"
"""Where hosts answer guests of every network."""
SEED_MAX = 512 * 1024
"""Bytes that a seed may have in all: it travels through a Secret, which etcd bounds to 1 MiB."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A network as a guest's interface meets it."""

    network: Network
    routers: frozenset[Address] = frozenset()
    """Addresses that routers have in it."""


class SeedProblem(Exception):
    """A Secret is missing or does not have what was named."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Seed:
    """Files of a seed, and whether anything in them came from a Secret."""

    files: Mapping[str, str]
    secret: bool


def wants_seed(vm: VirtualMachine) -> bool:
    """Whether the machine asks for first-boot data at all."""
    return vm.spec.cloud_init is not None or bool(vm.spec.ssh_keys)


def compose(
    vm: VirtualMachine,
    user_data: str | None,
    keys: list[str],
    nics: Sequence[Nic] = (),
    networks: Mapping[str, Wire] | None = None,
) -> Mapping[str, str]:
    """The files: meta-data, user-data and network-config, written by a YAML library. The network-config is the user's, if
    there is one; else it has every interface ask for its addresses, or set them where the network (by uid) has no DHCP."""
    init = vm.spec.cloud_init
    meta: dict[str, Any] = {"instance-id": _instance_of(vm), "local-hostname": vm.name}
    if init is not None:
        meta |= {key: value for key, value in init.meta_data.items() if key not in meta}
    if keys:
        meta["public-keys"] = keys
    files = {"meta-data": yaml.safe_dump(meta, default_flow_style=False, sort_keys=True, width=4096)}
    files["user-data"] = user_data if user_data else "#cloud-config\n{}\n"
    if init is not None and init.network_data:
        files["network-config"] = init.network_data
    elif nics:
        files["network-config"] = yaml.safe_dump(network_config(nics, networks or {}), sort_keys=False, width=4096)
    return files


def network_config(nics: Sequence[Nic], networks: Mapping[str, Wire]) -> Mapping[str, Any]:
    """Network configuration of version 2, by MAC address: guests give interfaces names of their own. An interface without
    addresses is brought up and left alone.

    https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v2.html
    """
    return {
        "version": 2,
        "ethernets": {
            nic.name: {"match": {"macaddress": nic.mac}, **_addressing(nic, networks.get(nic.network))} for nic in nics
        },
    }


def _addressing(nic: Nic, wire: Wire | None) -> Mapping[str, Any]:
    """How the guest gets the addresses: it asks, unless nobody answers there."""
    if wire is None or wire.network.spec.dhcp.enabled or not nic.addresses:
        return {
            "dhcp4": any(is_v4(address) for address in nic.addresses),
            "dhcp6": any(not is_v4(address) for address in nic.addresses),
        }
    network = wire.network
    own = {address: found for address in nic.addresses if (found := in_range(network, address)) is not None}
    routes, servers = [], []
    for found in dict.fromkeys(own.values()):
        servers.append(str(found.service))
        if found.version == 4:
            routes.append({"to": f"{METADATA}/32", "via": str(found.service)})
        if (gateway := str(found.gateway)) in {network.spec.gateway, *wire.routers}:
            routes.append({"to": "0.0.0.0/0" if found.version == 4 else "::/0", "via": gateway})
    domain = network.spec.dns.domain
    return {
        "dhcp4": False,
        "dhcp6": False,
        "addresses": [f"{address}/{found.cidr.prefixlen}" for address, found in own.items()],
        "nameservers": {"addresses": servers, **({"search": [domain]} if domain else {})},
        **({"routes": routes} if routes else {}),
        **({"mtu": network.status.mtu} if network.status.mtu else {}),
    }


async def gather(
    client: KubeClient, vm: VirtualMachine, nics: Sequence[Nic] = (), networks: Mapping[str, Wire] | None = None
) -> Seed | None:
    """Read the Secrets that the machine names and compose its seed; None when it asks for none.

    Raises `SeedProblem`. Live reads of Secrets by name: they are never cached.
    """
    if not wants_seed(vm):
        return None
    init, secret = vm.spec.cloud_init, False
    user_data = init.user_data if init else None
    if init is not None and init.user_data_secret is not None:
        user_data, secret = await _read(client, vm, init.user_data_secret, "cloudInit.userDataSecret"), True
    keys: list[str] = []
    for number, key in enumerate(vm.spec.ssh_keys):
        text = key.public_key or ""
        if key.secret is not None:
            text, secret = await _read(client, vm, key.secret, f"sshKeys[{number}].secret"), True
        keys += [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    files = compose(vm, user_data, keys, nics, networks)
    if sum(len(text.encode()) for text in files.values()) > SEED_MAX:
        raise SeedProblem("SeedTooLarge", f"The first-boot data is larger than {SEED_MAX // 1024} KiB.")
    return Seed(files, secret)


async def _read(client: KubeClient, vm: VirtualMachine, ref: LocalSecretKey, field: str) -> str:
    found = await client.find(SECRET, ref.name, vm.namespace)
    if found is None:
        raise SeedProblem("SecretNotFound", f"spec.{field}: there is no Secret {ref.name} in namespace {vm.namespace}.")
    data = found.get("data") or {}
    if ref.key not in data:
        raise SeedProblem("SecretKeyNotFound", f"spec.{field}: Secret {ref.name} has no key {ref.key}.")
    try:
        return base64.b64decode(data[ref.key], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise SeedProblem(
            "SecretNotText", f"spec.{field}: key {ref.key} of Secret {ref.name} is not UTF-8 text."
        ) from None


def _instance_of(vm: VirtualMachine) -> str:
    """By which a guest knows whether it is another one than it was: of a machine whose objects were lost what it was before."""
    origin = origin_of(vm)
    rebuilt = origin is not None and origin.epoch and IMPORTED_BY not in vm.metadata.annotations
    return origin.domain if origin is not None and rebuilt else vm.uid
