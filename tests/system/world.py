"""What a tenant and an operator do and see, for tests on a lab with real hosts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kumulus.api.base import Kind
from kumulus.api.host import WorkOrder
from kumulus.api.registry import KINDS
from kumulus.cli.cluster import Cluster
from kumulus.kube.builtin import NAMESPACE, SECRET
from kumulus.kube.errors import KubeError, NotFound
from kumulus_lab import commands, deadline, places
from kumulus_lab.host import LibvirtHost
from kumulus_lab.lab import Lab

Object = dict[str, Any]
WORDS: Mapping[str, Kind] = {
    word: kind
    for kind in (*(model.KIND for model in KINDS), NAMESPACE, SECRET)
    for word in (kind.kind.lower(), kind.plural, f"{kind.plural}.{kind.group}", *kind.short_names)
}
"""Kinds by what kubectl calls them."""


@cache
def _administrator(kubeconfig: Path) -> Cluster:
    return Cluster.connect(kubeconfig)


@dataclass(frozen=True, slots=True)
class World:
    """A namespace on a lab."""

    lab: Lab
    namespace: str

    @property
    def api(self) -> Cluster:
        """Who may do everything, in this process: a call of kubectl costs a tenth of a second."""
        return _administrator(self.lab.kubeconfig)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """What `kubectl apply --server-side` of these objects does."""
        query = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"}
        for raw in objects:
            kind, name = WORDS[raw["kind"].lower()], raw["metadata"]["name"]
            self.api.request(
                "PATCH",
                kind.path(self._place(kind), name),
                query=query,
                body=json.dumps(raw).encode(),
                content_type="application/apply-patch+yaml",
            )

    def _place(self, kind: Kind) -> str | None:
        return self.namespace if kind.namespaced else None

    def image(
        self,
        name: str,
        file: str | Path,
        *,
        sha256: str | None = None,
        format_: str = "qcow2",
        compression: str = "None",
    ) -> None:
        """Apply an Image of a file on the lab's image server; a path is copied there first."""
        if isinstance(file, Path):
            served = self.lab.image_directory / f"{self.namespace}-{file.name}"
            shutil.copyfile(file, served)
            sha256 = sha256 or hashlib.sha256(served.read_bytes()).hexdigest()
            file = served.name
        self.apply(
            {
                "apiVersion": "storage.kumulus.io/v1alpha1",
                "kind": "Image",
                "metadata": {"name": name},
                "spec": {
                    "source": {"http": {"url": f"{self.lab.image_url}/{file}"}},
                    "checksum": {"sha256": sha256 or self.lab.serve_image(Path(file).stem).sha256},
                    "compression": compression,
                    "format": format_,
                },
            }
        )

    def machine(self, name: str, *lines: str, image: str | None = "tiny", **spec: Any) -> None:
        """Apply a machine; `lines` are its user data. What is None in its spec is not there."""
        body: Object = {"resources": {"cpus": 1, "memory": "128Mi"}, **spec}
        body = {name: value for name, value in body.items() if value is not None}
        if image is not None:
            body.setdefault("disks", [{"name": "root", "ephemeral": {"image": image}}])
        if lines:
            body["cloudInit"] = {"userData": "#cloud-config\n" + "\n".join(lines) + "\n"}
        self.apply(
            {
                "apiVersion": "compute.kumulus.io/v1alpha1",
                "kind": "VirtualMachine",
                "metadata": {"name": name},
                "spec": body,
            }
        )

    def only_on(self, host: LibvirtHost) -> Object:
        """The placement of a machine that has to be on that host."""
        self.api.patch(WORDS["host"], host.name, {"metadata": {"labels": {"name": host.name}}})
        return {"hostSelector": {"name": host.name}}

    def patch(self, kind: str, name: str, body: Mapping[str, Any]) -> None:
        """Merge-patch an object."""
        self.api.patch(WORDS[kind], name, body, self._place(WORDS[kind]))

    def find(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The object, with an empty status when it has none yet, or None; also None while the API server does not answer."""
        try:
            found = self.api.find(WORDS[kind], name, (namespace or self.namespace) if WORDS[kind].namespaced else None)
            return None if found is None else {"status": {}, **found}
        except KubeError as error:
            if not error.retryable:
                raise
            return None

    def wait(
        self, kind: str, name: str, holds: Callable[[Object], object], what: str, *, seconds: float = 60
    ) -> Object:
        """The object, once `holds` is true of it. When it never is, the error shows what was there instead."""
        last: Object | None = None

        def probe() -> Object | None:
            nonlocal last
            last = self.find(kind, name)
            with suppress(KeyError):  # what is not told yet
                return last if last is not None and holds(last) else None
            return None

        try:
            return deadline.until(probe, f"{kind} {name}: {what}", seconds=seconds, every=0.1)
        except Exception as error:
            raise AssertionError(f"{error}; its status: {json.dumps((last or {}).get('status'), indent=1)}") from error

    def phase(self, name: str, phase: str, *, seconds: float = 60) -> Object:
        """The machine, once it is in that phase."""
        return self.wait(
            "vm", name, lambda vm: vm.get("status", {}).get("phase") == phase, f"phase {phase}", seconds=seconds
        )

    def condition(
        self, kind: str, name: str, reason: str, *, type_: str = "Ready", says: str = "", seconds: float = 60
    ) -> str:
        """The message of a condition, once it has that reason and says that."""

        def holds(item: Object) -> bool:
            found = item.get("status", {}).get("conditions", [])
            return any(c["type"] == type_ and c["reason"] == reason and says in c.get("message", "") for c in found)

        item = self.wait(kind, name, holds, f"{type_} for the reason {reason}", seconds=seconds)
        return next(str(c.get("message", "")) for c in item["status"]["conditions"] if c["type"] == type_)

    def host_of(self, name: str) -> LibvirtHost:
        """The host a machine is on."""
        vm = self.find("vm", name)
        assert vm is not None
        return self.lab.host(vm["status"]["host"])

    def console_file(self, name: str) -> Path:
        """Where the machine's console is logged, seen from outside its host."""
        vm = self.wait("vm", name, lambda item: item["status"].get("host"), "is on a host")
        return self.host_of(name).state_directory / "instances" / vm["metadata"]["uid"] / "console.log"

    def console(self, name: str, text: str, *, seconds: float = 60) -> str:
        """What the console printed, once it has that text."""
        path = self.console_file(name)

        def probe() -> str | None:
            try:
                said = path.read_text(errors="replace")
            except FileNotFoundError:
                return None
            return said if text in said else None

        try:
            return deadline.until(probe, f"{text!r} on the console of {name}", seconds=seconds, every=0.1)
        except Exception as error:
            tail = path.read_text(errors="replace")[-2000:] if path.exists() else "(no console log)"
            raise AssertionError(f"{error}; it says:\n{tail}") from error

    def delete(self, kind: str, name: str, *, seconds: float = 60) -> None:
        """Delete and wait until it is gone."""
        self.ask_end(kind, name)
        deadline.until(lambda: self._gone(kind, name), f"the end of {kind} {name}", seconds=seconds)

    def delete_all(self, kind: str) -> None:
        """Delete all of that kind in the namespace and wait until they are gone."""
        for item in self.api.objects(WORDS[kind], self.namespace):
            self.delete(kind, item["metadata"]["name"])

    def ask_end(self, kind: str, name: str) -> None:
        """Ask for its deletion, if it is there."""
        with suppress(NotFound):
            self.api.delete(WORDS[kind], name, self._place(WORDS[kind]))

    def _gone(self, kind: str, name: str) -> bool:
        try:
            return self.api.find(WORDS[kind], name, self._place(WORDS[kind])) is None
        except KubeError as error:
            if not error.retryable:
                raise
            return False

    def kumulusctl(self, *words: str, check: bool = True) -> commands.Finished:
        """Run kumulusctl as the lab's administrator in this namespace."""
        import os

        env = {**os.environ, "KUBECONFIG": str(self.lab.kubeconfig)}
        argv = [places.script("kumulusctl"), "-n", self.namespace, *words]
        return commands.run(argv, env=env, seconds=60, check=check)

    def left_over(self, uid: str) -> list[str]:
        """Everything on the hosts and in the API that still has to do with a machine of that uid."""
        found = []
        for host in self.lab.hosts:
            listed = host.exec(["virsh", "-q", "list", "--all", "--uuid"]).stdout.split()
            found += [f"domain on {host.name}"] if uid in listed else []
            found += [str(path) for path in host.state_directory.rglob(f"*{uid}*")]
        listed = [(kind, item["metadata"]) for kind in (WorkOrder.KIND, SECRET) for item in self.api.objects(kind)]
        return found + [f"{kind.kind} {meta['name']}" for kind, meta in listed if uid in meta["name"]]
