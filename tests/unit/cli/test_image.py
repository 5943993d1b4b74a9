"""How far an import is, in words; and which volume an image is made of."""

from __future__ import annotations

from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.image import Image
from kumulus.cli.image import progress, published
from kumulus.cli.problem import Problem

SPEC = {"source": {"oci": {"reference": "quay.io/a"}}, "format": "qcow2"}


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (None, ""),
        ({"bytes": 2**20}, "1 MiB"),
        ({"bytes": 2**20, "total": 2**22}, "25% of 4 MiB"),
        (
            {"bytes": 2**20, "total": 2**22, "rate": 2**19, "remainingSeconds": 6},
            "25% of 4 MiB, 512 KiB/s, 6s left",
        ),
        ({"bytes": 2**20, "rate": 2**19}, "1 MiB, 512 KiB/s"),
    ],
)
def test_how_far_an_import_is(at: Any, said: str) -> None:
    image = Image.parse({"metadata": {"name": "i"}, "spec": SPEC, "status": {"phase": "Importing", "progress": at}})
    assert progress(image) == said


def machine(*disks: dict[str, Any]) -> VirtualMachine:
    return VirtualMachine.parse({"metadata": {"name": "web"}, "spec": {"instanceType": "small", "disks": list(disks)}})


OWN = {"name": "scratch", "ephemeral": {"image": "tiny"}}
ROOT = {"name": "root", "volumeTemplate": {"size": "1Gi"}}
DATA = {"name": "data", "volume": "my-data"}


def test_an_image_is_made_of_the_disk_that_is_named_or_of_the_first_volume() -> None:
    vm = machine(OWN, ROOT, DATA)
    assert published(vm, None) == "web-root"
    assert published(vm, "data") == "my-data"


@pytest.mark.parametrize(
    ("disk", "why"), [("scratch", "no volume"), ("none", "scratch, root"), ("a\x1b[2J", "no disk")]
)
def test_what_no_image_is_made_of(disk: str, why: str) -> None:
    with pytest.raises(Problem, match=why) as refused:
        published(machine(OWN, ROOT), disk)
    assert "\x1b" not in str(refused.value)


def test_a_machine_without_volumes() -> None:
    with pytest.raises(Problem, match="no disk"):
        published(machine(OWN), None)
