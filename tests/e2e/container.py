"""An image as a node runs it: by runc, as the user that the chart says, on a root that is read-only, with no capability.

The network is this machine's own, so that the API server of a lab is reached.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kumulus_lab import commands

_PATH = "/opt/kumulus/bin:/usr/bin:/usr/sbin:/bin:/sbin"
_CREDENTIALS = "/run/credentials"


@dataclass(frozen=True, slots=True)
class Image:
    """The file system of an image, and a directory for what runs of it."""

    root: Path
    directory: Path

    def run(self, *argv: str, kubeconfig: Path | None = None, check: bool = True) -> commands.Finished:
        """A program to its end."""
        words = self._command(argv, {}, kubeconfig)
        return commands.run(words, check=check, seconds=120)

    @contextmanager
    def running(
        self, *argv: str, kubeconfig: Path, files: Mapping[str, Path], env: Mapping[str, str]
    ) -> Iterator[Path]:
        """A program until the block ends; yields its log. `files` are what it finds where."""
        words = self._command(argv, env, kubeconfig, files)
        log = self.directory / f"{words[-1]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield log
        finally:
            process.terminate()  # runc tells the program
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                commands.run(["runc", "delete", "--force", words[-1]], check=False)
                process.kill()
                process.wait()

    def _command(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        kubeconfig: Path | None,
        files: Mapping[str, Path] | None = None,
    ) -> list[str]:
        name = f"kumulus-test-{secrets.token_hex(4)}"
        bundle = self.directory / name
        bundle.mkdir()
        found = dict(files or {})
        variables = {"PATH": _PATH, **env}
        if kubeconfig is not None:
            given = bundle / "credentials"
            given.write_bytes(kubeconfig.read_bytes())
            given.chmod(0o444)  # in a directory of the test's own
            found[_CREDENTIALS] = given
            variables["KUBECONFIG"] = _CREDENTIALS
        (bundle / "config.json").write_text(json.dumps(_specification(self.root, argv, variables, found)))
        return ["runc", "run", "--bundle", str(bundle), name]


def _specification(
    root: Path, argv: tuple[str, ...], env: Mapping[str, str], files: Mapping[str, Path]
) -> dict[str, Any]:
    """What the OCI runtime specification calls config.json, of what the chart says in Kubernetes' words."""
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},
    ]
    for target, source in files.items():
        mounts.append({"destination": target, "type": "bind", "source": str(source), "options": ["bind", "ro"]})
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 65532, "gid": 65532},
            "args": list(argv),
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
    }
