"""Who may do what with a volume that somebody has, and with the machine that has it."""

from __future__ import annotations

import pytest

from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.storage.protocol import StorageError


@pytest.fixture
def freed() -> list[str]:
    return []


@pytest.fixture
def reservations(freed: list[str]) -> Reservations:
    return Reservations(freed.append)


def test_who_asked_for_what_somebody_had_is_told(reservations: Reservations, freed: list[str]) -> None:
    with reservations.hold(("a", "b"), "a snapshot of it is being taken"):
        with (
            pytest.raises(StorageError, match="a snapshot of it is being taken") as refused,
            reservations.hold("b", "x"),
        ):
            pass
        assert refused.value.reason == "VolumeBusy" and freed == []
    assert freed == ["b"]


def test_a_machine_is_resumed_beside_who_does_not_mind_and_nobody_else(reservations: Reservations) -> None:
    with reservations.hold(("a",), "it is being moved", resumable=True):
        with reservations.resuming("vm", ("a", "b")):
            pass
        with pytest.raises(StorageError), reservations.hold(("a",), "it is being grown"):
            pass
    with (
        reservations.hold(("a",), "it is being grown"),
        pytest.raises(StorageError, match="it is being grown"),
        reservations.resuming("vm", ("a",)),
    ):
        pass
    with reservations.hold(("a",), "it is being grown"):
        pass


def test_a_machine_is_not_halted_while_it_is_resumed_nor_the_other_way_round(reservations: Reservations) -> None:
    with reservations.hold(("a",), "it is being moved", resumable=True):
        with reservations.resuming("vm", ("a",)):
            with pytest.raises(StorageError), reservations.halting("vm"):
                pass
            with reservations.halting("other"):
                assert reservations.may_be_halted("other") and not reservations.may_be_halted("vm")
        with reservations.halting("vm"), pytest.raises(StorageError), reservations.resuming("vm", ("a",)):
            pass
        with reservations.resuming("vm", ("a",)):
            pass


def test_who_halts_a_machine_first_does_not_end_it_for_the_others(reservations: Reservations) -> None:
    with reservations.halting("vm"):
        with reservations.halting("vm"):
            pass
        assert reservations.may_be_halted("vm")
        with pytest.raises(StorageError), reservations.resuming("vm", ()):
            pass
    assert not reservations.may_be_halted("vm")


def test_what_a_machine_takes_along_to_another_host_is_not_touched_but_for_that() -> None:
    """It looks as if it were at rest here, while the guest writes to it there."""
    reservations = Reservations(lambda _volume: None, leaving=lambda volume: "vm" if volume == "a" else None)
    with (
        pytest.raises(StorageError, match="machine vm takes it along") as busy,
        reservations.hold(("a", "b"), "a snapshot"),
    ):
        pass
    assert busy.value.reason == "VolumeBusy"
    with reservations.hold(("b",), "a snapshot"), reservations.hold(("a",), "it is given up", along=True):
        pass
    with reservations.resuming("vm", ("a",)):
        pass
