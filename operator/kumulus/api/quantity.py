"""Kubernetes quantities (`2Gi`, `500m`, `1e3`): the type, its schema, and reading it.

Source: k8s.io/apimachinery/pkg/api/resource, "Quantity".
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_PATTERN = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][-+]?[0-9]{1,2}))?$"
_MAX_LENGTH = 32
_READ = re.compile(
    r"^\+?(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$"
)
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse(text: str | int) -> Decimal:
    """The value of a quantity. Raises `ValueError` when it is none."""
    match = _READ.match(str(text).strip())
    if match is None:
        raise ValueError(f"{str(text)[:_MAX_LENGTH]!r} is not a quantity such as 512Mi or 10Gi")
    number, suffix = Decimal(match["number"]), match["suffix"] or ""
    if suffix in _BINARY:
        return number * _BINARY[suffix]
    if suffix[:1] in ("e", "E") and len(suffix) > 1:
        return number.scaleb(int(suffix[1:]))
    return number.scaleb(_DECIMAL[suffix])


def to_bytes(text: str | int) -> int:
    """A quantity in whole bytes, rounded up."""
    return int(parse(text).to_integral_value(rounding=ROUND_CEILING))


def from_bytes(count: int) -> str:
    """A count of bytes as the shortest exact binary quantity: 2147483648 is `2Gi`."""
    for suffix, unit in reversed(_BINARY.items()):
        if count >= unit and count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)


def rounded(count: int) -> str:
    """A count of bytes as a quantity of three digits, as people read it: 105089261568 is `97.9Gi`.

    What was rounded once is not changed by rounding again, so a status that is read and written stays the same.
    """
    for suffix, unit in reversed(_BINARY.items()):
        value = count / unit
        if value >= 0.9995:  # else 1023.9Mi would be written as 1024Mi
            text = f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + suffix
    return str(count)


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("a quantity is a string or a whole number")
    parse(value)
    return str(value)


_FORM: dict[str, Any] = {
    "x-kubernetes-int-or-string": True,
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "pattern": _PATTERN,
    "maxLength": _MAX_LENGTH,
}


def _schema(*, least: str, most: str, what: str) -> dict[str, Any]:
    return {
        **_FORM,
        "x-kubernetes-validations": [
            {
                "rule": f"isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('{least}')) >= 0"
                f" && quantity(string(self)).compareTo(quantity('{most}')) <= 0",
                "message": f"must be {what} from {least} to {most}",
            }
        ],
    }


Memory = Annotated[
    str, BeforeValidator(_text), WithJsonSchema(_schema(least="16Mi", most="16Ti", what="an amount of memory"))
]
"""Memory of a machine, such as `2Gi`."""

DiskSize = Annotated[
    str, BeforeValidator(_text), WithJsonSchema(_schema(least="1Mi", most="256Ti", what="a disk size"))
]
"""Size of a disk, such as `10Gi`."""

Amount = Annotated[str, BeforeValidator(_text), WithJsonSchema(_schema(least="0", most="1Ei", what="an amount"))]
"""Any amount, zero included. The API server cuts a quantity to 2**63 - 1 when it reads it, so no bound may be near that."""

_READ_BYTES = BeforeValidator(lambda value: to_bytes(_text(value)))

Bytes = Annotated[int, _READ_BYTES, PlainSerializer(from_bytes, when_used="json"), WithJsonSchema(_FORM)]
"""Bytes in a status: a whole number for us, and to the byte a quantity such as `2Gi` in the API."""

Throughput = Annotated[
    int,
    _READ_BYTES,
    PlainSerializer(from_bytes, when_used="json"),
    WithJsonSchema(_schema(least="1", most="200Gi", what="bytes a second")),
]
"""Bytes a second. More than the most, for an hour, is more than QEMU can count."""

MeasuredBytes = Annotated[int, _READ_BYTES, PlainSerializer(rounded, when_used="json"), WithJsonSchema(_FORM)]
"""Bytes that were measured: the same, but rounded to three digits in the API, such as `97.9Gi`."""
