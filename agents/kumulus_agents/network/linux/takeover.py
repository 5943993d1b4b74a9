"""What keepalived runs when this host becomes a gateway's active one or gives way: connections that are open go on.

`takeover.py active|standby CONNTRACKD CONFIGURATION`, in the gateway's network namespace. Standard library only, for it is
copied beside the gateway's files and runs without an agent. It stops at nothing: a gateway that routes without its open
connections is better than none.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SECONDS = 10.0
"""That one step may take."""
LOOSE = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose")
"""Whether TCP is picked up in the middle. Not before the copies are there: an answer would be taken for a question."""

STEPS = {
    # What the other host had, into the kernel; then its copies are nobody's, and all that is here is told to who listens.
    "active": (("-c",), ("-f",), ("-R",), ("-B",)),
    # What another one had before is stale; what is here too, but not before the other host has it all.
    "standby": (("-f", "external"), ("-t",), ("-n",)),
}


def main(role: str, program: str, configuration: str) -> int:
    """Do the steps of that role; how many failed."""
    failed = 0
    if role == "standby":
        loose("0")
    for step in STEPS[role]:
        try:
            done = subprocess.run(
                [program, "-C", configuration, *step],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
            failed += done.returncode != 0
        except (OSError, subprocess.TimeoutExpired):
            failed += 1
        if step == ("-c",):
            loose("1")
    return failed


def loose(value: str) -> None:
    with suppress(OSError):
        LOOSE.write_text(value)


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:4]), 1))
