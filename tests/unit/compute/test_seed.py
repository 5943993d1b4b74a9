"""First-boot data: whatever a tenant writes, the files say what was meant and no more."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus.api.base import Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_import import IMPORTED, IMPORTED_BY
from kumulus.api.network import Network
from kumulus.api.segments import Nic
from kumulus_controllers.compute.seed import SEED_MAX, SeedProblem, Wire, compose, gather, network_config

HOSTILE = [
    "- x",
    "a: b",
    "!!python/object:os.system",
    "*a",
    "&a x",
    "#c",
    "\n---\n",
    "'",
    '"',
    "yes",
    "null",
    "1e3",
    "\x85",
    "{",
    "%",
]


def machine(**spec: Any) -> VirtualMachine:
    size = {"resources": {"cpus": 1, "memory": "1Gi"}}
    return VirtualMachine.parse({"metadata": {"name": "web", "namespace": "ns", "uid": "u1"}, "spec": {**size, **spec}})


WAS = "6f3a0c7e-9d1b-4c55-8a2e-000000000001"


@pytest.mark.parametrize(
    ("at", "by", "told"),
    [("", {}, "u1"), ("/3", {}, WAS), ("/3", {IMPORTED_BY: "i"}, "u1"), ("", {IMPORTED_BY: "i"}, "u1")],
)
def test_a_guest_whose_objects_were_lost_is_told_that_it_is_the_same(at: str, by: dict[str, str], told: str) -> None:
    """Else it would make keys of its own anew at its next start. One that was imported was told its uid from the first."""
    origin = {IMPORTED: f"h1/{WAS}{at}"} | by
    vm = machine()
    vm = vm.model_copy(update={"metadata": vm.metadata.model_copy(update={"annotations": origin})})
    assert yaml.safe_load(compose(vm, None, [])["meta-data"])["instance-id"] == told


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.one_of(st.sampled_from(["instance-id", "local-hostname", "role", *HOSTILE]), st.text(max_size=8)),
        st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20)),
        max_size=5,
    ),
    st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=20)), max_size=3),
)
def test_metadata_comes_out_as_it_went_in(meta: dict[str, str], keys: list[str]) -> None:
    files = compose(machine(cloudInit={"metaData": meta}), None, keys)
    read = yaml.safe_load(files["meta-data"])
    assert read["instance-id"] == "u1" and read["local-hostname"] == "web", "Kumulus' own keys are not a tenant's"
    expected = {**meta, "instance-id": "u1", "local-hostname": "web"}
    if keys:
        expected["public-keys"] = keys  # type: ignore[assignment]
    assert read == expected


def test_user_data_is_left_as_it_is_and_there_always_is_some() -> None:
    text = "#!/bin/sh\necho ': {'\n"
    assert compose(machine(cloudInit={"userData": text}), text, [])["user-data"] == text
    assert yaml.safe_load(compose(machine(), None, [])["user-data"]) == {}


class Secrets:
    """Secrets of one namespace."""

    def __init__(self, **found: dict[str, bytes]) -> None:
        self._found = found
        self.asked: list[tuple[str, str | None]] = []

    async def find(self, kind: Kind, name: str, namespace: str | None) -> dict[str, Any] | None:
        self.asked.append((name, namespace))
        if name not in self._found:
            return None
        return {"data": {key: base64.b64encode(value).decode() for key, value in self._found[name].items()}}


NICS = tuple(
    Nic(
        name=f"eth{number}",
        uid="00000000-0000-0000-0000-00000000000" + str(number),
        network="00000000-0000-0000-0000-000000000009",
        mac=f"02:00:00:00:00:0{number}",
        addresses=addresses,
    )
    for number, addresses in enumerate((("10.0.0.5", "fd00::5"), ()))
)


async def test_interfaces_ask_for_their_addresses_unless_the_user_says_otherwise() -> None:
    seed = await gather(Secrets(), machine(cloudInit={"userData": "#cloud-config\n"}), NICS)  # type: ignore[arg-type]
    assert seed is not None
    assert yaml.safe_load(seed.files["network-config"]) == {
        "version": 2,
        "ethernets": {
            "eth0": {"match": {"macaddress": "02:00:00:00:00:00"}, "dhcp4": True, "dhcp6": True},
            "eth1": {"match": {"macaddress": "02:00:00:00:00:01"}, "dhcp4": False, "dhcp6": False},
        },
    }
    own = await gather(Secrets(), machine(cloudInit={"networkData": "version: 2\n"}), NICS)  # type: ignore[arg-type]
    assert own is not None and own.files["network-config"] == "version: 2\n"
    assert await gather(Secrets(), machine(), NICS) is None  # type: ignore[arg-type]


def test_interfaces_set_their_addresses_where_nobody_gives_them() -> None:
    quiet = Network.parse(
        {
            "metadata": {"name": "net", "namespace": "ns", "uid": NICS[0].network},
            "spec": {
                "cidrs": ["10.0.0.0/24", "fd00::/64"],
                "gateway": "10.0.0.1",
                "dhcp": {"enabled": False},
                "dns": {"domain": "corp.example"},
            },
            "status": {"mtu": 1450},
        }
    )
    wire = Wire(quiet, routers=frozenset({"fd00::1"}))
    assert network_config(NICS, {quiet.uid: wire})["ethernets"] == {
        "eth0": {
            "match": {"macaddress": "02:00:00:00:00:00"},
            "dhcp4": False,
            "dhcp6": False,
            "addresses": ["10.0.0.5/24", "fd00::5/64"],
            "nameservers": {"addresses": ["10.0.0.2", "fd00::2"], "search": ["corp.example"]},
            "routes": [
                {"to": "169.254.169.254/32", "via": "10.0.0.2"},
                {"to": "0.0.0.0/0", "via": "10.0.0.1"},
                {"to": "::/0", "via": "fd00::1"},
            ],
            "mtu": 1450,
        },
        "eth1": {"match": {"macaddress": "02:00:00:00:00:01"}, "dhcp4": False, "dhcp6": False},
    }


async def test_a_machine_that_asks_for_nothing_gets_nothing() -> None:
    assert await gather(Secrets(), machine()) is None  # type: ignore[arg-type]


async def test_keys_and_user_data_of_secrets_make_the_seed_secret() -> None:
    client = Secrets(boot={"user": b"#cloud-config\n"}, team={"keys": b"ssh-ed25519 A a\n\n# old\nssh-ed25519 B b\n"})
    vm = machine(
        cloudInit={"userDataSecret": {"name": "boot", "key": "user"}},
        sshKeys=[{"secret": {"name": "team", "key": "keys"}}, {"publicKey": "ssh-ed25519 C c"}],
    )
    seed = await gather(client, vm)  # type: ignore[arg-type]
    assert seed is not None and seed.secret and seed.files["user-data"] == "#cloud-config\n"
    keys = yaml.safe_load(seed.files["meta-data"])["public-keys"]
    assert keys == ["ssh-ed25519 A a", "ssh-ed25519 B b", "ssh-ed25519 C c"]
    assert client.asked == [("boot", "ns"), ("team", "ns")]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({}, "SecretNotFound"),
        ({"boot": {"other": b"x"}}, "SecretKeyNotFound"),
        ({"boot": {"user": b"\xff\xfe"}}, "SecretNotText"),
        ({"boot": {"user": b"x" * SEED_MAX}}, "SeedTooLarge"),
    ],
)
async def test_what_is_wrong_with_a_secret_is_said(found: dict[str, dict[str, bytes]], reason: str) -> None:
    vm = machine(cloudInit={"userDataSecret": {"name": "boot", "key": "user"}})
    with pytest.raises(SeedProblem) as problem:
        await gather(Secrets(**found), vm)  # type: ignore[arg-type]
    assert problem.value.reason == reason
    if reason != "SeedTooLarge":
        assert "spec.cloudInit.userDataSecret" in str(problem.value)
