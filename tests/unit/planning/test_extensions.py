"""Filters and scorers of a package that somebody else has made and installed: `licences`, beside this file."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kumulus.runtime.modules import Registry
from kumulus_controllers.module import Faults, new_fleet
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Demand, HostView, Placement, Request

PACKAGE = Path(__file__).parent / "licences"
SQL = "licences.example.com/sql"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A fleet of an installation with that package: what an installer makes of its pyproject.toml is on the path."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items()) for group, points in groups
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for path in (tmp_path, PACKAGE):
        monkeypatch.syspath_prepend(str(path))
    made = new_fleet(Registry(), Faults())
    for name, labels in {
        "a": {},
        "b": {SQL: "yes", "licences.example.com/price": "9"},
        "c": {SQL: "yes", "licences.example.com/price": "3"},
    }.items():
        made.put_host(HostView(name, name, "z", cpus=8, memory=8 << 30, labels=labels))
    yield made
    sys.modules.pop("kumulus_licences", None)


def placed(fleet: Fleet, **labels: str) -> str:
    found = fleet.place(Request("vm", Demand(1, 1 << 30), "ns", "vm", labels))
    return found.host if isinstance(found, Placement) else str(found)


def test_an_installed_package_has_its_say(fleet: Fleet) -> None:
    assert placed(fleet, licence="sql") == "c", "the cheaper one"
    assert placed(fleet, licence="oracle") == "0 of 3 hosts fit: 3 without a licence for oracle (a, b, c)"
    assert placed(fleet) == "a"


def test_one_that_fails_of_a_host_does_no_more_harm_than_that(fleet: Fleet) -> None:
    fleet.put_host(
        HostView("c", "c", "z", cpus=8, memory=8 << 30, labels={SQL: "yes", "licences.example.com/price": "dear"})
    )
    assert placed(fleet, licence="sql") == "b", "of the other it has said nothing"
    judged = fleet.judge(Request("vm", Demand(1, 1 << 30), labels={"licence": "sql"}))
    assert {v.host: v.scores.get("licences") for v in judged.verdicts} == {"b": 0.1, "c": 0.0, "a": None}
