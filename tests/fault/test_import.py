"""Imports with a death before, after, and at the answer to every deed of controllers and of the host's agent. In memory."""

from __future__ import annotations

import pytest

from tests.fault.imports import STORIES, AdoptingStorage, deaths
from tests.fault.parties import How


@pytest.mark.wide
@pytest.mark.parametrize("name", STORIES)
def test_whoever_dies_meanwhile_nobody_touches_the_guest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fault.world.SimulatedStorage", AdoptingStorage)
    assert not deaths(STORIES[name], 1, 1, tuple(How))
