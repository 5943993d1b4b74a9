"""A host's cable, which can be made slow: both of its ends pass on no more than so many bits a second.

Only a queue can delay here: a constant delay needs the kernel's netem, and delaying what goes to one other host alone needs
classifiers (cls_u32, cls_flower); what Kumulus is tested on has neither.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from kumulus_lab import commands
from kumulus_lab.errors import LabError

_RATE = re.compile(r"^[1-9][0-9]{0,5}(kbit|mbit|gbit)$")
_QUEUE = ["burst", "16kb", "latency", "300ms"]
"""What is sent at once after a rest, and how long a packet waits before it is lost."""

End = tuple[tuple[str, ...], str]
"""The command that goes to where it is, and its device."""


@dataclass(frozen=True, slots=True)
class Cable:
    """Both ends of a cable."""

    ends: tuple[End, End]

    def slow(self, rate: str) -> None:
        """Carry no more than that each way, such as `10mbit`; what is more waits up to 300 ms. May be repeated."""
        if not _RATE.match(rate):
            raise LabError(f"'{rate}' is no rate: write 10mbit, 500kbit or 1gbit")
        for enter, device in self.ends:
            commands.run([*enter, "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, *_QUEUE])

    def heal(self) -> None:
        """Carry as much as it can. May be repeated."""
        if self.rate() is not None:
            for enter, device in self.ends:
                commands.run([*enter, "tc", "qdisc", "delete", "dev", device, "root"], check=False)

    def rate(self) -> int | None:
        """Bits a second that it carries; None: as much as it can."""
        for enter, device in self.ends:
            listed = commands.run([*enter, "tc", "-json", "qdisc", "show", "dev", device], check=False)
            for queue in json.loads(listed.stdout or "[]"):
                if queue.get("kind") == "tbf":
                    return int(queue["options"]["rate"]) * 8
        return None
