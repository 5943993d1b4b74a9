"""The program in the cage that unpacks: `python -I -m kumulus_agents.storage.unpacker PLAN COMPRESSION TARGET LIMIT ROOM`.

It unpacks descriptor 0 into the file TARGET. What it has read is told on its standard output, a
number on a line of its own, whenever that or what it has written has grown by a part of it; the last
line is one JSON object.
"""

from __future__ import annotations

import errno
import json
import os
import sys

from kumulus_agents.storage import cell, unpacking
from kumulus_agents.storage.rejection import Rejected, TooLarge

_TICKS = 200
"""Of what there is to read."""
_GROWTH = 16
_LEAST = 1 << 20


class Ticks:
    """Says how far it is, a few hundred times in all."""

    def __init__(self, total: int, target: unpacking.Sparse) -> None:
        self._target = target
        self._step = max(1, total // _TICKS)
        self._read = self._taken = 0

    def __call__(self, at: int) -> None:
        taken = self._target.taken
        if at < self._read + self._step and taken < self._taken + max(_LEAST, self._taken // _GROWTH):
            return
        self._read, self._taken = at, taken
        sys.stdout.write(f"{at}\n")
        sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Unpack descriptor 0 from inside the cage."""
    plan, compression, target, limit, room = arguments
    cell.enter(json.loads(plan))
    answer: dict[str, object]
    try:
        answer = {"size": _unpack(compression, target, int(limit), int(room))}
    except Rejected as rejected:
        answer = {"rejected": str(rejected)}
    except TooLarge:
        answer = {"tooLarge": True}
    except unpacking.NoRoom:
        answer = {"noRoom": True}
    except MemoryError:
        answer = {"rejected": "takes too much memory to unpack; pack it with a smaller window"}
    except OSError as error:
        if error.errno == errno.EFBIG:
            answer = {"tooLarge": True}
        else:
            answer = {"failed": error.errno}
    except Exception as error:  # whatever a decoder trips over is the file's doing: all it needs was loaded before
        answer = {"rejected": f"could not be unpacked ({type(error).__name__})"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    return 0


def _unpack(compression: str, target: str, limit: int, room: int) -> int:
    fd = os.open(target, os.O_WRONLY)
    sparse = unpacking.Sparse(lambda data, offset: os.pwrite(fd, data, offset), limit, room)
    unpacking.unpack(
        lambda offset, length: os.pread(0, length, offset), compression, sparse, Ticks(os.fstat(0).st_size, sparse)
    )
    os.ftruncate(fd, sparse.size)
    return sparse.size


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
