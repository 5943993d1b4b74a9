"""What `vm import` makes of its options, and which domain it takes."""

from __future__ import annotations

import pytest

from kumulus.api.machine_import import ImportTemplate
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.cli.importing import chosen, template
from kumulus.cli.problem import Problem


def domain(number: int, name: str) -> UnmanagedInstance:
    uuid = f"6f3a0c7e-9d1b-4c55-8a2e-{number:012d}"
    metadata = {"name": uuid, "namespace": "kumulus-host-h1", "uid": uuid}
    return UnmanagedInstance.parse({"metadata": metadata, "spec": {}, "status": {"name": name}})


def test_a_domain_is_found_by_its_name_or_uuid() -> None:
    one, two, twin = domain(1, "web"), domain(2, "db"), domain(3, "db")
    assert chosen([one, two], "h1", "web") is one
    assert chosen([one, two, twin], "h1", twin.name) is twin
    with pytest.raises(Problem, match="2 domains called db: name its UUID"):
        chosen([one, two, twin], "h1", "db")
    with pytest.raises(Problem, match="It has: db, web"):
        chosen([one, two], "h1", "mail")


def test_what_is_asked_for() -> None:
    made = template("team", "web", ["vda=root", "vdb=data"], ["52:54:00:AA:00:01=front"], "small")
    parsed = ImportTemplate.model_validate(made)
    assert [(disk.target, disk.name) for disk in parsed.disks] == [("vda", "root"), ("vdb", "data")]
    assert [(nic.mac_address, nic.network) for nic in parsed.interfaces] == [("52:54:00:aa:00:01", "front")]
    assert parsed.instance_type == "small"
    for disks, nics in ((["vda"], []), ([], ["=front"])):
        with pytest.raises(Problem, match="is not"):
            template("team", "web", disks, nics, None)
