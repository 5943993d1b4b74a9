"""Programs that the lab builds from Go modules because no download is at hand: Helm, promtool.

Each has a directory of hack/tools with the go.mod that pins it; the cache is keyed by that. Filled by one rename, so that a
build that was cut is never used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kumulus_lab import places
from kumulus_lab.errors import LabError

Say = Callable[[str], None]

_SOURCES = places.CHECKOUT / "hack" / "tools"


@dataclass(frozen=True, slots=True)
class Tool:
    """One program: what it is called, its package, and what its version is stamped with, if with anything."""

    name: str
    package: str
    stamp: str = ""

    @property
    def sources(self) -> Path:
        """The directory of the go.mod that pins it."""
        return _SOURCES / self.name

    @property
    def cached(self) -> Path:
        """Where the cache has it, or will."""
        digest = hashlib.sha256(self.stamp.encode())
        for name in ("go.mod", "go.sum"):
            digest.update((self.sources / name).read_bytes())
        return places.cache() / "tools" / f"{self.name}-{digest.hexdigest()[:12]}" / self.name

    def ensure(self, say: Say = lambda _: None) -> Path:
        """The program, ready to run: `$KUMULUS_TOOLS` (a directory), the cache, or a build of a minute or two. Raises LabError."""
        given = os.environ.get("KUMULUS_TOOLS")
        if given and os.access(Path(given) / self.name, os.X_OK):
            return Path(given) / self.name
        if not self.cached.exists():
            with places.exclusive("tools"):
                if not self.cached.exists():
                    self._build(say)
        return self.cached

    def _build(self, say: Say) -> None:
        go = shutil.which("go")
        if go is None:
            raise LabError(
                f"{self.name} has to be built, and there is no Go: install Go 1.26.7 or later, or point KUMULUS_TOOLS at a"
                f" directory that has {self.name}"
            )
        home = self.cached.parent
        home.mkdir(parents=True, exist_ok=True)
        log = home / "build.log"
        say(f"building {self.name} from Go modules (log: {log})")
        flags = f"-s -w {self.stamp}".strip()
        with tempfile.TemporaryDirectory(dir=home, prefix=".partial-") as partial, log.open("w") as output:
            target = Path(partial) / self.name
            done = subprocess.run(
                [go, "build", "-trimpath", "-ldflags", flags, "-o", str(target), self.package],
                cwd=self.sources,
                env={**os.environ, "CGO_ENABLED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if done.returncode != 0:
                last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                raise LabError(f"building {self.name} failed; its log is {log}:\n{last}")
            target.rename(self.cached)


_HELM = "helm.sh/helm/v3"
_FOR = [f"{_HELM}/pkg/{where}.k8sVersion" for where in ("chartutil", "lint/rules")]
"""As Helm's own Makefile: else a chart is rendered for Kubernetes 1.20 where no cluster is asked."""

HELM = Tool(
    "helm",
    f"{_HELM}/cmd/helm",
    " ".join(
        [
            f"-X {_HELM}/internal/version.version=v3.22.0",
            *(f"-X {name}Major=1 -X {name}Minor=34" for name in _FOR),
        ]
    ),
)
PROMTOOL = Tool("promtool", "github.com/prometheus/prometheus/cmd/promtool")
