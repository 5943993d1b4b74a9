"""Which processes the watchdog takes for emulators of the host's machines (ADR 44)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus_agents.hypervisor.libvirt import marks
from kumulus_agents.watchdog import guests

UID = "00000000-0000-4000-8000-000000000001"
OURS = f'<kumulus:instance xmlns:kumulus="{marks.NAMESPACE}" uid="{UID}"/>'
SAID = f"<title>{marks.NAMESPACE}</title>"
"""A domain of somebody else that speaks of ours."""


def state(inside: str) -> str:
    return f"<domstatus state='running'><domain type='kvm'>{inside}</domain></domstatus>"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.parametrize(
    ("name", "xml", "ours"),
    [
        (f"kumulus-{UID}", None, True),
        ("web, old", state(f"<metadata>{OURS}</metadata>"), True),
        ("web", None, False),
        ("web", state("<metadata/>"), False),
        ("web", state(SAID), False),
        ("web", f"<domstatus>{OURS}", False),
    ],
    ids=("ours", "adopted", "nothing known", "somebody else's", "only speaks of it", "half written"),
)
def test_what_was_adopted_is_ours_under_its_own_name(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], name: str, xml: str | None, ours: bool
) -> None:
    """Else the host counts as one that has ended its machines, and this one goes on while it starts elsewhere."""
    argument = f"guest={name.replace(',', ',,')},debug-threads=on"
    started.append(
        process := subprocess.Popen(
            (sys.executable, "-c", "print(flush=True); input()", "-name", argument),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    assert process.stdout is not None
    process.stdout.readline()
    (tmp_path / f"{name}.pid").write_text(str(process.pid))
    if xml is not None:
        (tmp_path / f"{name}.xml").write_text(xml)
    found = guests.living(tmp_path)
    for descriptor in found.values():
        os.close(descriptor)
    assert set(found) == ({name} if ours else set())


def test_its_names_are_those_of_the_driver() -> None:
    assert marks.NAMESPACE == guests.MARKS and marks.domain_name(UID).startswith(guests.OURS)
