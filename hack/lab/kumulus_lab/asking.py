"""Asks a web server again and again, and tells how long it got no answer: what somebody sees of a machine that moves or fails over.

`python -m kumulus_lab.asking URL`: asks until its standard input ends; then one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from kumulus_lab.errors import LabError
from kumulus_lab.outside import Outside

EVERY = 0.1
"""Seconds from one question to the next."""
LONGEST = 1.0
"""Seconds until a question counts as not answered."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of it. Seconds."""

    asked: int
    answered: int
    gap: float
    """The longest time without an answer."""


def ask(url: str, over: Callable[[], bool], every: float = EVERY) -> Answers:
    """Ask until it is over."""
    asked = answered = 0
    gap, last = 0.0, time.monotonic()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not over():
        began, asked = time.monotonic(), asked + 1
        try:
            with opener.open(url, timeout=LONGEST) as answer:
                answer.read(1 << 10)
        except (urllib.error.URLError, OSError):
            pass
        else:
            answered += 1
            now = time.monotonic()
            gap, last = max(gap, now - last), now
        time.sleep(max(0.0, began + every - time.monotonic()))
    return Answers(asked, answered, max(gap, time.monotonic() - last) if not answered else gap)


class Asking:
    """The client outside, who asks meanwhile."""

    def __init__(self) -> None:
        self.answers: Answers | None = None
        """There when the block has ended."""


@contextmanager
def meanwhile(client: Outside, url: str) -> Iterator[Asking]:
    """Have the client outside ask while the block runs."""
    argv = [*client.enter, sys.executable, "-m", "kumulus_lab.asking", url]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    asking = Asking()
    try:
        yield asking
        said, _ = process.communicate("", timeout=30)
        try:
            asking.answers = Answers(**json.loads(said))
        except (ValueError, TypeError) as error:
            raise LabError(f"the client outside did not say what it got: {said[:200]!r}") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def main() -> None:
    """Ask until standard input ends."""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    print(json.dumps(asdict(ask(sys.argv[1], ended.is_set))))


if __name__ == "__main__":
    main()
