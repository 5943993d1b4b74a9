"""How fast a disk may be, in libvirt's words. Pure.

https://libvirt.org/formatdomain.html (`iotune`) and `virDomainSetBlockIoTune` have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement

from kumulus.api.qos import UNLIMITED, Burst, Qos, Rates

NAMES: Mapping[str, str] = {
    "iops": "total_iops_sec",
    "read_iops": "read_iops_sec",
    "write_iops": "write_iops_sec",
    "bytes_per_second": "total_bytes_sec",
    "read_bytes_per_second": "read_bytes_sec",
    "write_bytes_per_second": "write_bytes_sec",
}
"""libvirt's name of each rate. With `_max` it is that of a burst, with `_max_length` of how long it may last."""


def parameters(qos: Qos) -> dict[str, int]:
    """All that `virDomainSetBlockIoTune` takes; 0 is no limit."""
    return {name: 0 for base in NAMES.values() for name in (base, f"{base}_max", f"{base}_max_length")} | _limits(qos)


def render(disk: Element, qos: Qos) -> None:
    """The limits in a disk's XML; nothing when there are none."""
    if limits := _limits(qos):
        element = SubElement(disk, "iotune")
        for name, value in limits.items():
            SubElement(element, name).text = str(value)


def read(disk: Element) -> Qos:
    """The limits that a disk's XML has."""
    element = disk.find("iotune")
    if element is None:
        return UNLIMITED
    found = {child.tag: int(child.text or 0) for child in element if (child.text or "").isdigit()}
    bursts = {field: found.get(f"{name}_max") or None for field, name in NAMES.items()}
    length = max((found.get(f"{name}_max_length", 0) for name in NAMES.values()), default=0)
    burst = Burst(**bursts, seconds=max(length, 1)) if any(bursts.values()) else None
    return Qos(**{field: found.get(name) or None for field, name in NAMES.items()}, burst=burst)


def _limits(qos: Qos) -> dict[str, int]:
    limits = {NAMES[field]: rate for field, rate in _rates(qos).items()}
    if qos.burst is not None:
        for field, rate in _rates(qos.burst).items():
            limits[f"{NAMES[field]}_max"] = rate
            limits[f"{NAMES[field]}_max_length"] = qos.burst.seconds
    return limits


def _rates(rates: Rates) -> dict[str, int]:
    found: dict[str, int | None] = {field: getattr(rates, field) for field in NAMES}
    return {field: rate for field, rate in found.items() if rate is not None}
