"""What the driver has made, on disk, so that the next agent knows. One file a network, a port and a gateway. Blocks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import structlog
from pydantic import ValidationError

from kumulus.api.gateways import GatewayOrder
from kumulus.api.segments import Nic, SegmentOrder
from kumulus_agents.network.linux.layout import Layout, Network, Place
from kumulus_agents.network.protocol import Port

log = structlog.get_logger(__name__)

_UNFINISHED = ".new"


def write_whole(path: Path, text: str, mode: int = 0o600, gid: int = -1, uid: int = -1) -> bool:
    """Make the file have that text, all at once. Whether it had another."""
    try:
        if path.read_text() == text:
            return False
    except OSError:
        pass
    unfinished = path.with_name(path.name + _UNFINISHED)
    unfinished.unlink(missing_ok=True)
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    unfinished.replace(path)
    return True


class Record:
    """The files of a `Layout`."""

    def __init__(self, directory: Path) -> None:
        self._networks = directory / "networks"
        self._ports = directory / "ports"
        self._gateways = directory / "gateways"

    def load(self) -> Layout:
        """What is on record. A file that cannot be read is as good as none: its order comes again."""
        for directory in (self._networks, self._ports, self._gateways):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        networks: dict[str, Network] = {}
        places: dict[str, Place] = {}
        for path in sorted(self._networks.glob("*.json")):
            try:
                raw = json.loads(path.read_text())
                order = SegmentOrder.model_validate(raw["order"])
                networks[order.uid] = Network(order, int(raw["number"]))
            except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
                log.warning("the record of a network cannot be read", file=str(path), error=str(error))
        for path in sorted(self._ports.glob("*.json")):
            try:
                raw = json.loads(path.read_text())
                nic = Nic.model_validate(raw["nic"])
                places[nic.uid] = Place(Port(nic, str(raw["machine"])), int(raw["number"]))
            except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
                log.warning("the record of a port cannot be read", file=str(path), error=str(error))
        gateways: dict[str, GatewayOrder] = {}
        for path in sorted(self._gateways.glob("*.json")):
            try:
                gateway = GatewayOrder.model_validate_json(path.read_text())
                gateways[gateway.uid] = gateway
            except (OSError, ValueError) as error:
                log.warning("the record of a gateway cannot be read", file=str(path), error=str(error))
        return Layout(networks, places, gateways)

    def keep_network(self, network: Network) -> None:
        """Put a network on record."""
        order = network.order.model_dump(mode="json", by_alias=True, exclude_none=True)
        text = json.dumps({"order": order, "number": network.number}, sort_keys=True)
        write_whole(self._networks / f"{network.order.uid}.json", text)

    def keep_port(self, place: Place) -> None:
        """Put a port on record."""
        nic = place.port.nic.model_dump(mode="json", by_alias=True, exclude_none=True)
        text = json.dumps({"nic": nic, "machine": place.port.machine, "number": place.number}, sort_keys=True)
        write_whole(self._ports / f"{place.port.nic.uid}.json", text)

    def keep_gateway(self, order: GatewayOrder) -> None:
        """Put a gateway on record."""
        text = json.dumps(order.to_json(), sort_keys=True)
        write_whole(self._gateways / f"{order.uid}.json", text)

    def forget_gateway(self, uid: str) -> None:
        """Strike a gateway off the record."""
        (self._gateways / f"{uid}.json").unlink(missing_ok=True)

    def forget_network(self, uid: str) -> None:
        """Strike a network off the record."""
        (self._networks / f"{uid}.json").unlink(missing_ok=True)

    def forget_port(self, uid: str) -> None:
        """Strike a port off the record."""
        (self._ports / f"{uid}.json").unlink(missing_ok=True)
