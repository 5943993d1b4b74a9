"""The method `ipmi` on a real IPMI service: OpenIPMI's simulator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus_controllers.fabric import ipmi
from kumulus_controllers.fabric.fencing import FencingError, Power, Target
from kumulus_controllers.fabric.ipmi import Ipmi, place
from tests.contract.ipmi_bmc import PASSWORD, USER, Simulator, path_with, simulator, spy


@pytest.fixture(scope="module")
def bmc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with simulator(tmp_path_factory.mktemp("bmc")) as made:
        yield made


def aim(bmc: Simulator, password: str = PASSWORD, user: str = USER, **changes: object) -> Target:
    return Target("h1", bmc.bmc(**changes), user, password)


async def test_a_host_is_switched_off_and_is_said_to_be(bmc: Simulator) -> None:
    bmc.press()
    fencer = Ipmi()
    assert await fencer.power(aim(bmc)) is Power.ON
    await fencer.off(aim(bmc))
    assert bmc.power == "Off" and await fencer.power(aim(bmc)) is Power.OFF
    await fencer.off(aim(bmc))  # again: nothing


async def test_nobody_on_the_machine_can_read_the_password(
    bmc: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy(tmp_path)
    monkeypatch.setenv("PATH", path_with(tmp_path))
    monkeypatch.setenv("SOMETHING", PASSWORD)
    await Ipmi().power(aim(bmc))
    seen = (tmp_path / "seen").read_text()
    assert USER in seen and PASSWORD not in seen


@pytest.mark.parametrize(
    ("changes", "user", "password", "reason"),
    [
        ({}, USER, "wrong", "BmcRefuses"),
        ({}, "nobody", PASSWORD, "BmcRefuses"),
        ({}, USER, PASSWORD * 2, "SecretNotUsable"),
        ({}, "-L\x00", PASSWORD, "SecretNotUsable"),
        ({"address": "127.0.0.1:1"}, USER, PASSWORD, "BmcUnreachable"),
        ({"address": "127.0.0.1:0"}, USER, PASSWORD, "BmcAddress"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_said_without_the_password(
    bmc: Simulator,
    changes: dict[str, object],
    user: str,
    password: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if reason == "BmcUnreachable":
        monkeypatch.setattr(ipmi, "SECONDS", 1.5)
    with pytest.raises(FencingError) as refused:
        await Ipmi().power(aim(bmc, password, user, **changes))
    assert refused.value.reason == reason and password not in str(refused.value)


async def test_without_the_program_it_is_said_what_to_install(bmc: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FencingError) as refused:
        await Ipmi().power(aim(bmc))
    assert refused.value.reason == "NoIpmitool" and "ipmitool" in str(refused.value)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("10.0.9.1", ("10.0.9.1", 623)),
        ("bmc1.example:6230", ("bmc1.example", 6230)),
        ("[fd00::1]:6230", ("fd00::1", 6230)),
        ("[fd00::1]", ("fd00::1", 623)),
        ("fd00::1", ("fd00::1", 623)),
        ("bmc:99999", None),
        ("[bmc]:1", None),
    ],
)
def test_where_a_bmc_is(address: str, found: tuple[str, int] | None) -> None:
    assert place(address) == found
