"""`python -m kumulus_agents.watchdog`: the watchdog of this host, by itself. It holds little, and imports nothing of the agent."""

from __future__ import annotations

import argparse
from pathlib import Path

from kumulus_agents.watchdog import daemon, guests


def main() -> None:
    """Does not return."""
    parser = argparse.ArgumentParser(prog="kumulus-agent watchdog", description="The watchdog of this host.")
    parser.add_argument("--socket", type=Path, default=daemon.SOCKET, help="where the agent reaches it")
    parser.add_argument("--pids", type=Path, default=guests.PIDS, help="where libvirt keeps pids of emulators")
    chosen = parser.parse_args()
    daemon.serve(chosen.socket, chosen.pids)


if __name__ == "__main__":
    main()
