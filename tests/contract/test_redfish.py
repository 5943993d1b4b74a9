"""The method `redfish` on a real Redfish service: sushy-tools' emulator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus_controllers.fabric.fencing import FencingError, Power, Target
from kumulus_controllers.fabric.redfish import Redfish
from tests.contract.bmc import PASSWORD, SYSTEM, USER, Emulator, emulator


@pytest.fixture(scope="module")
def bmc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with emulator(tmp_path_factory.mktemp("bmc")) as made:
        yield made


def aim(bmc: Emulator, password: str = PASSWORD, **changes: object) -> Target:
    return Target("h1", bmc.bmc(**changes), USER, password)


async def test_a_host_is_switched_off_and_is_said_to_be(bmc: Emulator) -> None:
    bmc.press()
    fencer = Redfish()
    assert await fencer.power(aim(bmc)) is Power.ON
    await fencer.off(aim(bmc))
    assert bmc.power == "Off" and await fencer.power(aim(bmc)) is Power.OFF
    await fencer.off(aim(bmc))  # again: nothing
    assert await fencer.power(aim(bmc, system=SYSTEM[:-1] + "0")) is Power.OFF


@pytest.mark.parametrize(
    ("changes", "password", "reason"),
    [
        ({}, "wrong", "BmcRefuses"),
        ({"caBundle": None}, PASSWORD, "BmcCertificate"),
        ({"caBundle": "no certificate"}, PASSWORD, "BmcCertificate"),
        ({"address": "https://127.0.0.1:1"}, PASSWORD, "BmcUnreachable"),
        ({"system": "another"}, PASSWORD, "BmcFails"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_said_without_the_password(
    bmc: Emulator, changes: dict[str, object], password: str, reason: str
) -> None:
    with pytest.raises(FencingError) as refused:
        await Redfish().power(aim(bmc, password, **changes))
    assert refused.value.reason == reason
    assert password not in str(refused.value) and password not in repr(aim(bmc, password))


async def test_whoever_does_not_want_the_certificate_looked_at_says_so(bmc: Emulator) -> None:
    open_ = {"caBundle": None, "insecureSkipVerify": True}
    assert await Redfish().power(aim(bmc, **open_)) in (Power.ON, Power.OFF)


async def test_of_several_systems_one_has_to_be_named(tmp_path: Path) -> None:
    with emulator(tmp_path, systems=2) as made:
        with pytest.raises(FencingError) as refused:
            await Redfish().power(aim(made))
        assert refused.value.reason == "BmcSystem"
        assert await Redfish().power(aim(made, system=SYSTEM[:-1] + "1")) is Power.ON
