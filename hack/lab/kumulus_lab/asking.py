"""Asks a web server again and again, and tells how long it got no answer: what somebody sees of a machine that moves or fails over.

`python -m kumulus_lab.asking URL`: asks until its standard input ends, and then until it gets an answer; says BEGUN when it got
its first, and in the end one line of JSON.
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
LAST = 20.0
"""For so many seconds more is asked for the last answer: with it ends the time without one."""
BEGINS_WITHIN = 30.0
"""Seconds within which the first answer has to come."""
BEGUN = "begun"


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of it. Seconds."""

    asked: int
    answered: int
    gap: float
    """The longest time without an answer."""
    silent: bool = False
    """No answer came in the end."""


def ask(url: str, over: Callable[[], bool], every: float = EVERY, begun: Callable[[], None] = lambda: None) -> Answers:
    """Ask until it is over and an answer comes, or `LAST` seconds longer. `begun` is told of the first answer."""
    asked = answered = 0
    gap, last = 0.0, time.monotonic()
    ended: float | None = None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        began, asked = time.monotonic(), asked + 1
        if ended is None and over():
            ended = began
        try:
            with opener.open(url, timeout=LONGEST) as answer:
                answer.read(1 << 10)
        except (urllib.error.URLError, OSError):
            heard = False
        else:
            answered, heard = answered + 1, True
            now = time.monotonic()
            gap, last = max(gap, now - last), now
            if answered == 1:
                begun()
        if ended is not None and (heard or began > ended + LAST):
            return Answers(asked, answered, gap if heard else max(gap, time.monotonic() - last), silent=not heard)
        time.sleep(max(0.0, began + every - time.monotonic()))


class Asking:
    """The client outside, who asks meanwhile."""

    def __init__(self) -> None:
        self.answers: Answers | None = None
        """There when the block has ended."""


@contextmanager
def meanwhile(client: Outside, url: str) -> Iterator[Asking]:
    """Have the client outside ask while the block runs. It has had an answer when that begins. Raises `LabError` when none comes."""
    argv = [*client.enter, sys.executable, "-m", "kumulus_lab.asking", url]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    asking, late = Asking(), threading.Timer(BEGINS_WITHIN, process.kill)
    try:
        assert process.stdout is not None
        late.start()
        if process.stdout.readline().strip() != BEGUN:
            raise LabError(f"the client outside got no answer from {url} within {BEGINS_WITHIN:.0f} s")
        late.cancel()
        yield asking
        said, _ = process.communicate("", timeout=LAST + 10)
        try:
            asking.answers = Answers(**json.loads(said))
        except (ValueError, TypeError) as error:
            raise LabError(f"the client outside did not say what it got: {said[:200]!r}") from error
    finally:
        late.cancel()
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
    told = ask(sys.argv[1], ended.is_set, begun=lambda: print(BEGUN, flush=True))
    print(json.dumps(asdict(told)))


if __name__ == "__main__":
    main()
