"""Messages of libvirt's remote protocol, as far as a migration needs them. Pure.

A message is its length and six numbers, then arguments in XDR (RFC 4506): https://libvirt.org/kbase/internals/rpc.html.
Numbers of procedures and shapes of arguments are those of src/remote/remote_protocol.x, which libvirt never changes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

REMOTE = 0x20008086
KEEP_ALIVE = 0x6B656570
CALL = 0

OPEN = 1
CLOSE = 2
SUPPORTS_FEATURE = 60
AUTH_LIST = 66
PREPARE = 303
"""`REMOTE_PROC_DOMAIN_MIGRATE_PREPARE3_PARAMS`"""
FINISH = 306
"""`REMOTE_PROC_DOMAIN_MIGRATE_FINISH3_PARAMS`"""
REGISTER_CLOSE = 360
UNREGISTER_CLOSE = 361

HEADER = struct.Struct(">IIIiiIi")
LONGEST = 32 << 20
"""Bytes of a message at most, as in libvirt's `VIR_NET_MESSAGE_MAX`."""
PARAMETERS_MOST = 64
COPIED_DISK = "migrate_disks"

Value = int | float | str

_FORMATS: Mapping[int, str] = {1: ">i", 2: ">I", 3: ">q", 4: ">Q", 5: ">d", 6: ">i"}
_STRING = 7


class Malformed(ValueError):
    """It is no message of that protocol."""


@dataclass(frozen=True, slots=True)
class Head:
    """Who is called."""

    program: int
    version: int
    procedure: int
    kind: int
    serial: int
    status: int

    @classmethod
    def of(cls, message: bytes) -> Head:
        """The head of a whole message. Raises `Malformed`."""
        try:
            return cls(*HEADER.unpack_from(message)[1:])
        except struct.error as error:
            raise Malformed("a message is too short") from error


@dataclass(frozen=True, slots=True)
class Arguments:
    """Those of Prepare and Finish."""

    parameters: Mapping[str, tuple[int, Value]]
    """Type and value by name."""
    cookie: bytes
    flags: int
    rest: bytes = b""
    """Of Finish: whether it was cancelled."""
    disks: tuple[str, ...] = ()
    """Of Prepare: the disks that are copied, by the guest's names. The one parameter that is there several times."""

    def text(self, name: str) -> str | None:
        """A parameter that is a text; None when there is none of that name."""
        found = self.parameters.get(name)
        return found[1] if found is not None and isinstance(found[1], str) else None

    def saying(self, **texts: str) -> Arguments:
        """The same with these parameters, all texts, and no others."""
        return replace(self, parameters={name: (_STRING, text) for name, text in texts.items()})


def message(head: Head, arguments: Arguments) -> bytes:
    """The whole message."""
    parameters = [*arguments.parameters.items(), *((COPIED_DISK, (_STRING, disk)) for disk in arguments.disks)]
    body = b"".join(
        (
            struct.pack(">I", len(parameters)),
            *(_opaque(name.encode()) + _value(*value) for name, value in parameters),
            _opaque(arguments.cookie),
            struct.pack(">I", arguments.flags),
            arguments.rest,
        )
    )
    fields = (head.program, head.version, head.procedure, head.kind, head.serial, head.status)
    return HEADER.pack(HEADER.size + len(body), *fields) + body


def arguments_of(whole: bytes) -> Arguments:
    """What Prepare or Finish is called with. Raises `Malformed`."""
    reader = _Reader(whole, HEADER.size)
    count = reader.number()
    if count > PARAMETERS_MOST:
        raise Malformed("it has too many parameters")
    parameters: dict[str, tuple[int, Value]] = {}
    disks = []
    for _ in range(count):
        name, kind = reader.text(), reader.number()
        value = reader.value(kind)
        if name == COPIED_DISK and isinstance(value, str):
            disks.append(value)
        else:
            parameters[name] = (kind, value)
    return Arguments(parameters, reader.opaque(), reader.number(), reader.left(), tuple(disks))


def name_of(whole: bytes) -> str | None:
    """The URI that Open is called with; None: none. Raises `Malformed`."""
    reader = _Reader(whole, HEADER.size)
    return reader.text() if reader.number() else None


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def number(self) -> int:
        return int(self._unpack(">I"))

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.text()
        if kind not in _FORMATS:
            raise Malformed("a parameter has a type that is not known")
        found: int | float = self._unpack(_FORMATS[kind])
        return found

    def text(self) -> str:
        try:
            return self.opaque().decode()
        except UnicodeDecodeError as error:
            raise Malformed("a text is not UTF-8") from error

    def opaque(self) -> bytes:
        length = self.number()
        end = self._at + length
        if end > len(self._data):
            raise Malformed("a message is too short")
        found = self._data[self._at : end]
        self._at += -(-length // 4) * 4
        return found

    def left(self) -> bytes:
        return self._data[self._at :]

    def _unpack(self, form: str) -> int | float:
        try:
            (found,) = struct.unpack_from(form, self._data, self._at)
        except struct.error as error:
            raise Malformed("a message is too short") from error
        self._at += struct.calcsize(form)
        value: int | float = found
        return value


def _opaque(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data + b"\0" * (-len(data) % 4)


def _value(kind: int, value: Value) -> bytes:
    if isinstance(value, str):
        return struct.pack(">I", kind) + _opaque(value.encode())
    return struct.pack(">I", kind) + struct.pack(_FORMATS[kind], value)
