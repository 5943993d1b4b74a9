"""The chart as an operator handles it: Helm's own commands, and what they say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kumulus_lab import commands, gotools, places

CHART = places.CHECKOUT / "charts" / "kumulus"
NAMESPACE = "kumulus-system"
NAME = "kumulus"


@dataclass(frozen=True, slots=True)
class Helm:
    """Helm, as the administrator of a cluster, or of none."""

    kubeconfig: Path | None = None
    namespace: str = NAMESPACE

    def run(self, *words: str | Path, check: bool = True, seconds: float = 120) -> commands.Finished:
        """One command in that namespace. Raises LabError when it fails."""
        where = ["--kubeconfig", str(self.kubeconfig)] if self.kubeconfig is not None else []
        argv = [gotools.HELM.ensure(), *words, *where, "--namespace", self.namespace]
        # Neither settings nor plugins of who runs the tests.
        home = dict.fromkeys(("HELM_CONFIG_HOME", "HELM_DATA_HOME", "HELM_CACHE_HOME", "HOME"), "/nonexistent")
        return commands.run(argv, env={**home, "PATH": "/usr/bin:/bin"}, check=check, seconds=seconds)

    def complaint(self, *words: str | Path, seconds: float = 120) -> str:
        """What a command that has to fail says."""
        done = self.run(*words, check=False, seconds=seconds)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """The release."""
        found: dict[str, Any] = json.loads(self.run("status", NAME, "--output=json").stdout)
        return found
