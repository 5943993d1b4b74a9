"""`kumulusctl install`: the kinds, the roles and the admission policies are in the cluster.

What is installed are the YAML files of the checkout or, installed as a wheel, of the package. Everything is
applied server-side by the field manager `kumulus`, so it may be repeated, upgrades in place, and leaves alone
what others added to the same objects. Nothing is removed here, and no process is started.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kumulus.api.base import Kind, Scope
from kumulus.cli.cluster import Cluster
from kumulus.cli.problem import Problem
from kumulus.cli.session import Session
from kumulus.kube import errors

Raw = dict[str, Any]

FIELD_MANAGER = "kumulus"
ESTABLISHED_SECONDS = 60.0

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parents[1]
_PLACES: tuple[tuple[Path, ...], ...] = (
    (_CHECKOUT / "crds", _CHECKOUT / "charts" / "kumulus" / "manifests"),
    (_PACKAGE / "manifests" / "crds", _PACKAGE / "manifests" / "platform"),
)
"""Where the files may be, in this order: a checkout, a wheel. Kinds come first, then what refers to them."""

_CRD = "CustomResourceDefinition"
_CRD_KIND = Kind(
    group="apiextensions.k8s.io", version="v1", kind=_CRD, plural="customresourcedefinitions", scope=Scope.CLUSTER
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One YAML file and the objects in it."""

    path: Path
    objects: tuple[Raw, ...]


def install(session: Session) -> None:
    """Apply every file, wait until the API server serves the kinds, and say per file what changed.

    May be repeated; nothing changes the second time. Raises `Problem` and `errors.KubeError`.
    """
    cluster = session.cluster
    kinds = _Kinds(cluster)
    waiting: list[str] = []
    for manifest in manifests():
        done: Counter[str] = Counter()
        for wanted in manifest.objects:
            if wanted["kind"] != _CRD and waiting:
                _await_established(cluster, waiting, session)
                waiting.clear()
            done[_apply(cluster, kinds.of(wanted), wanted)] += 1
            if wanted["kind"] == _CRD:
                waiting.append(wanted["metadata"]["name"])
        session.printer.text(f"{manifest.path.name}: {_summary(done)}")
    _await_established(cluster, waiting, session)


def manifests(places: Sequence[Sequence[Path]] = _PLACES) -> list[Manifest]:
    """The files to apply, in their order, from the first of the places that has any. Raises `Problem`."""
    for folders in places:
        files = [file for folder in folders for file in sorted(folder.glob("*.yaml"))]
        if files:
            return [Manifest(file, tuple(_documents(file))) for file in files]
    raise Problem("This kumulusctl came without the files of an installation; install the package again.")


def _documents(file: Path) -> Iterator[Raw]:
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
        if document is not None:
            yield document


class _Kinds:
    """Which resource a kind is, as the API server's discovery says."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: dict[str, list[Raw]] = {}

    def of(self, wanted: Mapping[str, Any]) -> Kind:
        """The kind of an object. Raises `Problem` when the API server does not serve it."""
        api_version, name = str(wanted["apiVersion"]), str(wanted["kind"])
        group, _, version = api_version.rpartition("/")
        if api_version not in self._known:
            prefix = f"/apis/{api_version}" if group else f"/api/{version}"
            try:
                self._known[api_version] = self._cluster.request("GET", prefix)["resources"]
            except errors.NotFound:
                self._known[api_version] = []
        for resource in self._known[api_version]:
            if resource["kind"] == name and "/" not in resource["name"]:
                scope = Scope.NAMESPACED if resource["namespaced"] else Scope.CLUSTER
                return Kind(group=group, version=version, kind=name, plural=resource["name"], scope=scope)
        raise Problem(
            f"The API server {self._cluster.server} has no {name} ({api_version}); "
            "Kumulus needs Kubernetes 1.32 or newer."
        )


def _apply(cluster: Cluster, kind: Kind, wanted: Mapping[str, Any]) -> str:
    """Server-side apply. Says what came of it: created, updated or unchanged."""
    name, namespace = wanted["metadata"]["name"], wanted["metadata"].get("namespace")
    before = cluster.find(kind, name, namespace)
    after = cluster.request(
        "PATCH",
        kind.path(namespace, name),
        query={"fieldManager": FIELD_MANAGER, "force": "true"},
        body=json.dumps(wanted).encode(),
        content_type="application/apply-patch+yaml",
    )
    if before is None:
        return "created"
    same = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"]
    return "unchanged" if same else "updated"


def _summary(done: Counter[str]) -> str:
    """`created`, or `12 created, 1 updated` for a file of several objects."""
    if done.total() == 1:
        return next(iter(done))
    return ", ".join(f"{done[what]} {what}" for what in ("created", "updated", "unchanged") if done[what])


def _await_established(cluster: Cluster, names: Sequence[str], session: Session) -> None:
    """Return when the API server serves all these kinds. Raises `Problem` when it does not in time."""
    end = session.monotonic() + ESTABLISHED_SECONDS
    left = list(names)
    while left := [name for name in left if not _established(cluster.get(_CRD_KIND, name))]:
        if session.monotonic() >= end:
            raise Problem(
                f"The API server does not serve {', '.join(left)} after {ESTABLISHED_SECONDS:.0f} s; "
                f"see `kubectl describe crd {left[0]}`."
            )
        session.sleep(0.1)


def _established(crd: Mapping[str, Any]) -> bool:
    return any(
        condition["type"] == "Established" and condition["status"] == "True"
        for condition in crd.get("status", {}).get("conditions") or ()  # null, at first
    )
