"""OVSDB through ovsdbapp: this host's northbound database, and that of Open vSwitch. Blocks.

Imports ovsdbapp, which only hosts with OVN have: only `driver` imports this module, when it is asked to prepare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ovsdbapp import exceptions
from ovsdbapp.backend.ovs_idl import connection, idlutils
from ovsdbapp.schema.open_vswitch import impl_idl as open_vswitch
from ovsdbapp.schema.ovn_northbound import impl_idl as ovn_northbound

from kumulus_agents.network.ovn import names
from kumulus_agents.network.ovn.rows import MARK, Rows, binding
from kumulus_agents.network.protocol import NetworkError

SECONDS = 20
"""Within which a database has to answer."""

TABLES = (
    *("DHCP_Options", "ACL", "QoS", "Logical_Switch_Port", "Address_Set", "Port_Group", "Logical_Switch"),
    *("Logical_Router_Policy", "Logical_Router_Port", "Logical_Router", "Static_MAC_Binding"),
)
"""What of the northbound database Kumulus writes."""
_NAMED = {
    *("Logical_Switch_Port", "Address_Set", "Port_Group", "Logical_Switch"),
    *("Logical_Router_Port", "Logical_Router"),
}

T = TypeVar("T")


class Northbound:
    """The northbound database of this host. Its verbs are called one at a time."""

    def __init__(self, socket: str) -> None:
        """Raises `NetworkError`."""
        idl = _connect(socket, "OVN_Northbound", (*TABLES, "NB_Global"))
        self._api = ovn_northbound.OvnNbApiIdlImpl(connection.Connection(idl, SECONDS))
        self.routes = all(table in self._api.tables for table in TABLES)
        """Whether this OVN can have logical routers as they are here: it has `Static_MAC_Binding` since 22.06."""

    def apply(self, wanted: Rows, *, anew: bool = False) -> int | None:
        """Have exactly these rows of Kumulus, in one transaction. The number that `Switch.reached` tells when they are in
        force on this host; None when they were so already. `anew`: a number in any case. Raises `NetworkError`."""
        change = _Change(self._api.tables, wanted, anew)
        _commit(self._api, change)
        return change.number

    def left_behind(self, wanted: Rows) -> bool:
        """Whether a port of a logical router of these is gone, alone or with its router, and what says who is where behind it is
        there still. Made anew then it would not work, or ovn-northd would take no change from then on (23.03): it goes on to
        name what is gone."""
        with self._api.ovsdb_connection.lock:
            there = {row.name for row in self._api.tables["Logical_Router_Port"].rows.values()}
            bindings = self._api.tables["Static_MAC_Binding"].rows.values() if self.routes else ()
            bound = {row.logical_port for row in bindings}
        return any(table == "Logical_Router_Port" and name in bound - there for table, name in wanted)

    def switches(self) -> list[str]:
        """Names of all logical switches."""
        with self._api.ovsdb_connection.lock:
            return [row.name for row in self._api.tables["Logical_Switch"].rows.values()]

    def uuids(self, table: str) -> Mapping[str, str]:
        """Keys of Kumulus' own rows of a table, by uuid. May be asked while another verb is at work."""
        with self._api.ovsdb_connection.lock:
            rows = self._api.tables[table].rows.values()
            return {str(row.uuid): row.external_ids[MARK] for row in rows if MARK in row.external_ids}


class _Change:
    """One transaction; ovsdbapp may run it again when somebody else was faster."""

    def __init__(self, tables: Mapping[str, Any], wanted: Rows, anew: bool) -> None:
        self._tables = tables
        self._wanted = wanted
        self._anew = anew
        self.number: int | None = None
        self.result = None
        """Asked for by ovsdbapp."""

    def run_idl(self, txn: Any) -> None:
        rows = {(table, key): row for table in TABLES for key, row in _own(self._tables, table, self._wanted)}
        self.number = None
        changed = self._anew
        new = self._wanted.keys() - rows.keys()
        for key, wanted in self._wanted.items():
            if key in new:
                rows[key] = txn.insert(self._tables[key[0]])
                there: Mapping[str, Any] = {}
                changed = True
            else:
                there = {column: _plain(getattr(rows[key], column)) for column in wanted.columns}
            for column, value in wanted.columns.items():
                if column not in there or there[column] != value:
                    setattr(rows[key], column, sorted(value) if isinstance(value, frozenset) else value)
                    changed = True
        for key, wanted in self._wanted.items():
            for column, others in wanted.refers.items():
                named = {rows[other].uuid for other in others}
                if key in new or {row.uuid for row in getattr(rows[key], column)} != named:
                    setattr(rows[key], column, [rows[other] for other in sorted(others)])
                    changed = True
        for key in rows.keys() - self._wanted.keys():
            rows[key].delete()
            changed = True
        if changed:
            whole = next(iter(self._tables["NB_Global"].rows.values()), None) or txn.insert(self._tables["NB_Global"])
            self.number = whole.nb_cfg + 1
            whole.nb_cfg = self.number

    def post_commit(self, txn: Any) -> None:
        """Asked for by ovsdbapp."""


def _own(tables: Mapping[str, Any], table: str, wanted: Rows) -> list[tuple[str, Any]]:
    """Kumulus' own rows, by key. What has the name of one of them but is not marked is taken for it: another one of that
    name cannot be there besides, and would be in the way of every change."""
    found: list[tuple[str, Any]] = []
    if table not in tables:
        return found
    for row in list(tables[table].rows.values()):
        if table == "Static_MAC_Binding":  # it has no column for a mark
            if names.is_router_port(row.logical_port):
                found.append((binding(row.logical_port, row.ip), row))
        elif (key := row.external_ids.get(MARK)) is not None:
            found.append((key, row))
        elif table in _NAMED and (row.name.startswith(("kumulus_", "kumulus-")) or (table, row.name) in wanted):
            found.append((row.name, row))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return frozenset(value)
    return value


@dataclass(frozen=True, slots=True)
class Interface:
    """A port of a bridge of Open vSwitch."""

    name: str
    bridge: str
    number: int | None
    """By which flows know it."""
    id: str | None
    """By which OVN knows it."""
    gateway: str | None = None
    """Uid of the gateway whose cable it is."""
    installed: bool = False
    """Whether OVN passes its packets."""
    tag: int | None = None
    """Number of its VLAN on the bridge."""


class Switch:
    """Open vSwitch of this host. Its verbs are called one at a time."""

    def __init__(self, socket: str) -> None:
        """Raises `NetworkError`."""
        idl = _connect(socket, "Open_vSwitch", ("Open_vSwitch", "Bridge", "Port", "Interface"))
        self._api = open_vswitch.OvsdbIdl(connection.Connection(idl, SECONDS))

    def said(self) -> dict[str, str]:
        """What Open vSwitch is told of OVN: `external_ids` of the whole."""
        with self._api.ovsdb_connection.lock:
            return dict(self._whole().external_ids)

    def datapath(self, bridge: str) -> str | None:
        """The kind of datapath of a bridge; None when there is no such bridge."""
        with self._api.ovsdb_connection.lock:
            for row in self._api.tables["Bridge"].rows.values():
                if row.name == bridge:
                    return str(row.datapath_type)
        return None

    def tell(self, said: Mapping[str, str]) -> None:
        """Have it be told so; what else it is told stays. Raises `NetworkError`."""
        if {key: self.said().get(key) for key in said} != dict(said):
            _commit(self._api, self._api.db_set("Open_vSwitch", ".", ("external_ids", dict(said))))

    def ensure_bridge(self, name: str, datapath: str) -> bool:
        """Have a bridge that forwards nothing but what flows say; whether there was none. Raises `NetworkError`."""
        if self.datapath(name) == datapath:
            return False
        add = self._api.add_br(name, may_exist=True, datapath_type=datapath)
        secure = self._api.db_set("Bridge", name, ("fail_mode", "secure"), ("datapath_type", datapath))
        _commit(self._api, add, secure)
        return True

    def ensure_switch(self, name: str, datapath: str) -> bool:
        """Have a bridge that forwards as a switch does; whether there was none. Raises `NetworkError`."""
        if self.datapath(name) == datapath:
            return False
        add = self._api.add_br(name, may_exist=True, datapath_type=datapath)
        alone = self._api.db_set("Bridge", name, ("fail_mode", "standalone"), ("datapath_type", datapath))
        _commit(self._api, add, alone)
        return True

    def bridges(self) -> frozenset[str]:
        """Names of all bridges."""
        with self._api.ovsdb_connection.lock:
            return frozenset(row.name for row in self._api.tables["Bridge"].rows.values())

    def remove_bridge(self, name: str) -> None:
        """Have no such bridge. Raises `NetworkError`."""
        if self.datapath(name) is not None:
            _commit(self._api, self._api.del_br(name, if_exists=True))

    def ensure_port(self, bridge: str, name: str, *, tag: int | None = None, **columns: object) -> bool:
        """Have a port with such an interface, in a VLAN of the bridge if `tag` says so; whether it was not so. Raises
        `NetworkError`."""
        with self._api.ovsdb_connection.lock:
            row = next((row for row in self._api.tables["Interface"].rows.values() if row.name == name), None)
            known = self.interfaces().get(name)
            if row is not None and known is not None and (known.bridge, known.tag) == (bridge, tag):
                there = {column: getattr(row, column) for column in columns}
                if all(
                    {key: there[column].get(key) for key in value} == value
                    if isinstance(value, dict)
                    else there[column] == value
                    for column, value in columns.items()
                ):
                    return False
        if row is not None and self._bridge_of(name) != bridge:
            _commit(self._api, self._api.del_port(name, if_exists=True))
        _commit(
            self._api,
            self._api.add_port(bridge, name, may_exist=True),
            self._api.db_set("Interface", name, *columns.items()),
            self._api.db_set("Port", name, ("tag", [] if tag is None else tag)),
        )
        return True

    def remove_port(self, name: str) -> None:
        """Have no such port. Raises `NetworkError`."""
        if self._bridge_of(name) is not None:
            _commit(self._api, self._api.del_port(name, if_exists=True))

    def interfaces(self) -> dict[str, Interface]:
        """All ports of all bridges, by name."""
        found: dict[str, Interface] = {}
        with self._api.ovsdb_connection.lock:
            for bridge in self._api.tables["Bridge"].rows.values():
                for port in bridge.ports:
                    for row in port.interfaces:
                        number = row.ofport[0] if row.ofport and row.ofport[0] > 0 else None
                        said = row.external_ids
                        found[row.name] = Interface(
                            row.name,
                            bridge.name,
                            number,
                            said.get("iface-id"),
                            said.get(names.GATEWAY),
                            said.get("ovn-installed") == "true",
                            port.tag[0] if port.tag else None,
                        )
        return found

    def reached(self, integration: str) -> int:
        """The number of the last change of the northbound database that is in force on this host."""
        with self._api.ovsdb_connection.lock:
            for row in self._api.tables["Bridge"].rows.values():
                if row.name == integration:
                    return int(row.external_ids.get("ovn-nb-cfg", -1))
        return -1

    def zones(self, integration: str) -> dict[str, int]:
        """Conntrack zones of logical ports, by the port's name."""
        with self._api.ovsdb_connection.lock:
            for row in self._api.tables["Bridge"].rows.values():
                if row.name == integration:
                    return {
                        key.removeprefix("ct-zone-"): int(value)
                        for key, value in row.external_ids.items()
                        if key.startswith("ct-zone-")
                    }
        return {}

    def _bridge_of(self, port: str) -> str | None:
        interface = self.interfaces().get(port)
        return interface.bridge if interface else None

    def _whole(self) -> Any:
        (row,) = self._api.tables["Open_vSwitch"].rows.values()
        return row


def _connect(socket: str, schema: str, tables: tuple[str, ...]) -> Any:
    """A connection that knows those of the tables that the database has."""

    def connect() -> Any:
        helper = idlutils.get_schema_helper(f"unix:{socket}", schema)
        there = [table for table in tables if table in helper.schema_json["tables"]]
        return connection.OvsdbIdl.from_server(f"unix:{socket}", schema, helper=helper, helper_tables=there)

    return _attempt(f"{names.DATABASES[schema]} does not answer at {socket}", connect)


def _commit(api: Any, *commands: Any) -> None:
    def commit() -> None:
        with api.transaction(check_error=True, log_errors=False) as transaction:
            for command in commands:
                transaction.add(command)

    _attempt(f"{names.DATABASES[api.schema]} did not take a change", commit)


def _attempt(what: str, do: Callable[[], T]) -> T:
    try:
        return do()
    except (exceptions.OvsdbAppException, RuntimeError, OSError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:300]
        raise NetworkError(f"{what}: {said}", reason="DatabaseFailed") from error
