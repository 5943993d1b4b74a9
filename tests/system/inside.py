"""Commands inside a guest, by its agent: what somebody who is logged in there sees and does."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from kumulus_lab import deadline
from kumulus_lab.host import LibvirtHost


@dataclass(frozen=True, slots=True)
class Inside:
    """A guest whose agent answers."""

    host: LibvirtHost
    uid: str
    """Of its machine."""

    def run(self, script: str, *, seconds: float = 60) -> str:
        """Run a shell script as root to its end; what it printed. Raises AssertionError when it fails."""
        pid = self.begin(script)

        def ended() -> Any:
            status = self._ask("guest-exec-status", {"pid": pid})
            return status if status["exited"] else None

        status = deadline.until(ended, f"the end of {script!r} in the guest", seconds=seconds, every=0.2)
        said, complaint = (base64.b64decode(status.get(key, "")).decode() for key in ("out-data", "err-data"))
        assert status["exitcode"] == 0, f"{script!r} in the guest: {said}{complaint}"
        return said

    def begin(self, script: str) -> int:
        """Have a shell script begin, as root; its process id. How it ends is not looked at: it may halt the agent."""
        deadline.until(self.answers, "the guest's agent", seconds=60, every=0.2)
        arguments = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        return int(self._ask("guest-exec", arguments)["pid"])

    def sees(self, script: str, wanted: str, *, seconds: float = 60) -> None:
        """Return once the script prints that."""
        last = ""

        def holds() -> bool:
            nonlocal last
            last = self.run(script).strip()
            return last == wanted

        try:
            deadline.until(holds, f"{wanted!r} from {script!r} in the guest", seconds=seconds, every=0.2)
        except Exception as error:
            raise AssertionError(f"{error}; the last it printed is {last!r}") from error

    def at_rest(self) -> bool:
        """Whether its file systems are frozen, by what its agent knows."""
        return bool(self._ask("guest-fsfreeze-status") == "frozen")

    def answers(self) -> bool:
        """Whether its agent does."""
        return self._virsh("guest-ping", {}) is not None

    def _ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        answer = self._virsh(command, arguments or {})
        assert answer is not None, f"the agent does not answer {command}"
        return answer["return"]

    def _virsh(self, command: str, arguments: dict[str, Any]) -> Any:
        order = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        done = self.host.exec(
            ["virsh", "-q", "qemu-agent-command", "--timeout", "10", f"kumulus-{self.uid}", order], check=False
        )
        return json.loads(done.stdout) if done.returncode == 0 else None
