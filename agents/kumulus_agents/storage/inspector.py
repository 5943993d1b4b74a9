"""The program in the cage that inspects: `python -I -m kumulus_agents.storage.inspector PLAN FORMAT MAX`.

It loads what it needs, goes into the cage, and only then looks at the file, which is open as
descriptor 0. Its answer is one JSON object on its standard output.
"""

from __future__ import annotations

import json
import sys

from kumulus_agents.storage import cell, inspection
from kumulus_agents.storage.rejection import Rejected


def main(arguments: list[str]) -> int:
    """Inspect descriptor 0 from inside the cage."""
    plan, declared, max_virtual_size = arguments
    cell.enter(json.loads(plan))
    answer: dict[str, object]
    try:
        found = inspection.inspect(0, declared, int(max_virtual_size))
        answer = {"format": found.format, "virtualSize": found.virtual_size}
    except Rejected as rejected:
        answer = {"rejected": str(rejected)}
    except Exception as error:  # whatever a parser trips over is the file's doing: all it needs was loaded before
        answer = {"rejected": f"could not be understood ({type(error).__name__})"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
