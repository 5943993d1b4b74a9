"""The reference pages."""

from __future__ import annotations

from kumulus.api.compute import GROUP, VirtualMachine
from kumulus.api.console import ConsoleRequest
from kumulus.api.instance_type import InstanceType
from kumulus.crdgen.reference import page


def test_a_page_says_what_a_user_has_to_know() -> None:
    text = page(GROUP, [VirtualMachine, InstanceType, ConsoleRequest])
    for line in (
        "* [InstanceType](#instancetype): A size that machines can have, offered by the operator.",
        "* Resource: `virtualmachines.compute.kumulus.io`; short: `vm`, `vms`",
        "* Set exactly one of instanceType and resources.",
        "| `resources.cpus` **(required)** | integer |  | Virtual CPUs. From 1 to 1024. |",
        "| `restartPolicy` | string | `Always` | What happens when the guest or QEMU ends by itself: start it again (with growing"
        " pauses), only after a failure, or never. One of `Always`, `OnFailure`, `Never`. |",
        "| `deletionProtection` | boolean | `false` | Refuse to delete the machine while true. |",
    ):
        assert line in text.splitlines()


def test_a_row_has_four_cells_whatever_is_in_them() -> None:
    for line in page(GROUP, [VirtualMachine]).splitlines():
        if line.startswith("| `"):
            assert line.replace("\\|", "").count("|") == 5, line
