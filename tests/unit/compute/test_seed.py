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
from kumulus_controllers.compute.seed import SEED_MAX, SeedProblem, compose, gather

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
