"""How fast a disk may be. Shared by classes, work orders and what agents report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kumulus.api.base import Model, Rule
from kumulus.api.quantity import Throughput

_Operations = Annotated[int, Field(ge=1, le=100_000_000)]

_OPERATIONS = ("iops", "readIops", "writeIops")
_BYTES = ("bytesPerSecond", "readBytesPerSecond", "writeBytesPerSecond")

_TOTAL_OR_EACH = (
    Rule(
        "!has(self.iops) || (!has(self.readIops) && !has(self.writeIops))",
        "set iops, or readIops and writeIops: a total leaves no room for limits of its own for each",
        field=".iops",
    ),
    Rule(
        "!has(self.bytesPerSecond) || (!has(self.readBytesPerSecond) && !has(self.writeBytesPerSecond))",
        "set bytesPerSecond, or readBytesPerSecond and writeBytesPerSecond: a total leaves no room for limits of its own for each",
        field=".bytesPerSecond",
    ),
)


class Rates(Model):
    """Operations and bytes a second: in total, or of reading and writing each."""

    iops: _Operations | None = Field(default=None, description="Operations a second, reading and writing together.")
    read_iops: _Operations | None = Field(default=None, description="Operations a second of reading.")
    write_iops: _Operations | None = Field(default=None, description="Operations a second of writing.")
    bytes_per_second: Throughput | None = Field(
        default=None, description="Bytes a second, reading and writing together, such as `100Mi`."
    )
    read_bytes_per_second: Throughput | None = Field(default=None, description="Bytes a second of reading.")
    write_bytes_per_second: Throughput | None = Field(default=None, description="Bytes a second of writing.")


class Burst(Rates):
    """Rates that a disk may have for a while after it was idle."""

    rules = (
        *_TOTAL_OR_EACH,
        Rule(
            " || ".join(f"has(self.{name})" for name in (*_OPERATIONS, *_BYTES)),
            "a burst needs a rate: set iops, bytesPerSecond or the like",
        ),
    )

    seconds: int = Field(
        default=1,
        description="How long it may last at full speed. What was used up comes back at the rates without burst.",
        ge=1,
        le=3600,
    )


def _burst_rules() -> tuple[Rule, ...]:
    rules = []
    for name in _OPERATIONS:
        rules.append(
            Rule(
                f"!has(self.burst) || !has(self.burst.{name})"
                f" || (has(self.{name}) && self.burst.{name} >= self.{name})",
                f"burst.{name} needs a {name} that is not above it",
                field=".burst",
            )
        )
    for name in _BYTES:
        rules.append(
            Rule(
                f"!has(self.burst) || !has(self.burst.{name}) || (has(self.{name})"
                f" && quantity(string(self.burst.{name})).compareTo(quantity(string(self.{name}))) >= 0)",
                f"burst.{name} needs a {name} that is not above it",
                field=".burst",
            )
        )
    return tuple(rules)


class Qos(Rates):
    """How fast a disk may be; what is empty is not limited."""

    rules = (*_TOTAL_OR_EACH, *_burst_rules())

    burst: Burst | None = Field(default=None, description="Rates that it may have for a while after it was idle.")


UNLIMITED = Qos()
"""As fast as it can."""
