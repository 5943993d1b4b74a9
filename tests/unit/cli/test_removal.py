"""What keeps Kumulus from being uninstalled."""

from __future__ import annotations

from kumulus.cli.removal import obstacle


def test_machines_that_would_be_nobody_s_are_named_and_counted() -> None:
    assert obstacle([]) is None
    one = obstacle([("shop", "web")])
    assert one is not None and one.startswith("There is 1 VirtualMachine: shop/web.")
    many = obstacle([("shop", f"web-{number}") for number in range(7)])
    assert many is not None and many.startswith("There are 7 VirtualMachines: shop/web-0,")
    assert "shop/web-4 and 2 more" in many
    assert "web-5" not in many
