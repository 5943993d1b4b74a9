"""First-boot data (NoCloud) of a machine: the files of its seed. Pure but for `SeedSource`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from kumulus.api.base import LocalSecretKey
from kumulus.api.compute import VirtualMachine
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient

SEED_MAX = 512 * 1024
"""Bytes that a seed may have in all: it travels through a Secret, which etcd bounds to 1 MiB."""


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


def compose(vm: VirtualMachine, user_data: str | None, keys: list[str]) -> Mapping[str, str]:
    """The files: meta-data, user-data and network-config, written by a YAML library."""
    init = vm.spec.cloud_init
    meta: dict[str, Any] = {"instance-id": vm.uid, "local-hostname": vm.name}
    if init is not None:
        meta |= {key: value for key, value in init.meta_data.items() if key not in meta}
    if keys:
        meta["public-keys"] = keys
    files = {"meta-data": yaml.safe_dump(meta, default_flow_style=False, sort_keys=True, width=4096)}
    files["user-data"] = user_data if user_data else "#cloud-config\n{}\n"
    if init is not None and init.network_data:
        files["network-config"] = init.network_data
    return files


async def gather(client: KubeClient, vm: VirtualMachine) -> Seed | None:
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
    files = compose(vm, user_data, keys)
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
