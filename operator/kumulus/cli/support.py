"""`kumulusctl support-bundle`: what somebody else needs to see of a cloud to help, in one file, without what is nobody's business.

It only reads. What it may take of an object is in `redaction`. Secrets are not even asked for.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
import urllib3

from kumulus.api.base import PLATFORM_NAMESPACE, Kind
from kumulus.api.registry import KINDS
from kumulus.cli.amounts import count
from kumulus.cli.problem import Problem
from kumulus.cli.redaction import metadata, redacted, scrub
from kumulus.cli.session import Session, command
from kumulus.crdgen.crd import schema
from kumulus.kube import errors
from kumulus.kube.builtin import EVENT, LEASE

Raw = dict[str, Any]

POD = Kind(group="", version="v1", kind="Pod", plural="pods")
METRICS = ("http://127.0.0.1:8080/metrics", "http://127.0.0.1:9410/metrics")
"""Of the controllers and of an agent, where they serve them unless told otherwise."""
LOG_MAX = 8 << 20
"""Bytes of the end of each log."""
METRICS_MAX = 16 << 20
LOG_LINES = 20_000
SECONDS = 10.0

_README = """\
What a cloud of Kumulus is like, for who helps with it.

objects/    every object of Kumulus, a file a kind, with its conditions
versions    of kumulusctl and the API server; those of agents are in the statuses of objects/hosts.json
leases      who leads, and which agents were heard of
events      what Kubernetes has noted about objects of Kumulus
logs/       the ends of logs of pods in kumulus-system, and of the files that were named
metrics/    of the processes on the machine where it was made
problems    what could not be had, and why

Not in it: Secrets; text that users wrote (first-boot data, keys, addresses of images, descriptions, labels and annotations of
their own: only how long they are); what guests said and printed. Names of objects are in it. What looks like a key, token or
password in the rest was taken out, which is a guess: read the file before you hand it on.
"""

Files = Iterator[tuple[str, str]]
"""Names in the bundle, and what is there."""


class _Collection:
    """What is read, and what could not be."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.problems: list[str] = []

    def files(self, logs: Iterable[Path], metrics: Iterable[str]) -> Files:
        """Everything, one after the other."""
        yield "README.txt", _README
        yield "versions.json", _json(self._versions())
        for model in KINDS:
            seen = schema(model)
            objects = [redacted(raw, seen) for raw in self._objects(model.KIND)]
            yield f"objects/{model.KIND.plural}.{model.KIND.group}.json", _json(objects)
        yield "leases.json", _json([_lease(raw) for raw in self._objects(LEASE) if _of_ours(raw)])
        groups = {model.KIND.group for model in KINDS}
        events = self._objects(EVENT)
        yield "events.json", _json([_event(raw) for raw in events if _about(raw) in groups])
        yield from self._pods()
        for number, path in enumerate(logs, 1):
            if (text := self._end_of(path)) is not None:
                yield f"logs/{number}-{path.name}", scrub(text)
        for number, url in enumerate(metrics, 1):
            if (text := self._metrics(url)) is not None:
                yield f"metrics/{number}.txt", scrub(text)
        yield "problems.txt", "".join(f"{problem}\n" for problem in self.problems)

    def _objects(self, kind: Kind) -> list[Raw]:
        try:
            return self._session.cluster.objects(kind)
        except errors.Unreachable:
            raise
        except errors.KubeError as error:
            self._problem(f"{kind.plural}", error)
            return []

    def _versions(self) -> Raw:
        server = self._session.cluster.request("GET", "/version")
        return {
            "kumulusctl": version("kumulus"),
            "server": {key: server.get(key) for key in ("gitVersion", "platform")},
        }

    def _pods(self) -> Files:
        try:
            pods = self._session.cluster.objects(POD, PLATFORM_NAMESPACE)
        except errors.KubeError as error:
            self._problem(f"pods of {PLATFORM_NAMESPACE}", error)
            return
        for pod in pods:
            name = pod["metadata"]["name"]
            for container in pod.get("spec", {}).get("containers", ()):
                query = {"container": container["name"], "tailLines": str(LOG_LINES), "limitBytes": str(LOG_MAX)}
                try:
                    text = self._session.cluster.text(f"{POD.path(PLATFORM_NAMESPACE, name)}/log", query=query)
                except errors.KubeError as error:
                    self._problem(f"log of {name} ({container['name']})", error)
                else:
                    yield f"logs/pods/{name}.{container['name']}.log", scrub(text)

    def _end_of(self, path: Path) -> str | None:
        try:
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_MAX))
                return file.read(LOG_MAX).decode(errors="replace")
        except OSError as error:
            self._problem(str(path), error)
            return None

    def _metrics(self, url: str) -> str | None:
        try:
            timeout = urllib3.Timeout(connect=2.0, read=SECONDS)
            answer = urllib3.request("GET", url, timeout=timeout, retries=False, redirect=False, preload_content=False)
            try:
                text = answer.read(METRICS_MAX).decode(errors="replace")
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            self._problem(f"metrics of {url}", error)
            return None
        if answer.status != 200:
            self._problem(f"metrics of {url}", f"it answers {answer.status}")
            return None
        return text

    def _problem(self, what: str, why: object) -> None:
        self.problems.append(scrub(f"{what}: {' '.join(str(why).split())}"))


def _of_ours(lease: Raw) -> bool:
    return str(lease["metadata"].get("namespace")).startswith("kumulus-")


def _lease(raw: Raw) -> Raw:
    names = ("holderIdentity", "leaseDurationSeconds", "acquireTime", "renewTime", "leaseTransitions")
    return {"metadata": metadata(raw["metadata"]), "spec": {name: raw.get("spec", {}).get(name) for name in names}}


def _about(event: Raw) -> str:
    return str((event.get("regarding") or {}).get("apiVersion", "")).partition("/")[0]


def _event(raw: Raw) -> Raw:
    kept = {name: raw.get(name) for name in ("type", "reason", "action", "eventTime", "reportingController", "series")}
    names = ("kind", "namespace", "name", "uid")
    regarding = {name: (raw.get("regarding") or {}).get(name) for name in names}
    return {
        "metadata": metadata(raw["metadata"]),
        **kept,
        "regarding": regarding,
        "note": scrub(str(raw.get("note") or "")),
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _write(path: Path, files: Files, at: float) -> int:
    """Make the bundle, readable by its owner only; how many files are in it. Nothing stays when it is not made whole."""
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Problem(f"{path} cannot be made: {error.strerror}.") from error
    number = 0
    try:
        with os.fdopen(opened, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, text in files:
                data = text.encode()
                entry = tarfile.TarInfo(f"{path.name.partition('.')[0]}/{name}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(at)
                tar.addfile(entry, io.BytesIO(data))
                number += 1
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return number


def _bundle(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Argument(help="The file to make, a .tar.gz; its name has the time otherwise.", show_default=False),
    ] = None,
    log: Annotated[
        list[Path] | None, typer.Option("--log", help="A log to put in, such as the agent's; may be repeated.")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics", help="Where a process serves metrics; those on this machine otherwise. May be repeated."
        ),
    ] = None,
) -> None:
    """Put what somebody who helps needs to see into a file: objects, versions, logs, metrics; no Secrets, no data of users."""
    path = file or Path(f"kumulus-support-{session.now:%Y%m%dT%H%M%SZ}.tar.gz")
    collection = _Collection(session)
    number = _write(path, collection.files(log or (), metrics or METRICS), session.now.timestamp())
    session.printer.note(
        f"{path} has {count(number, 'file')}. Names of objects are in it; look at it before you hand it on."
    )
    for problem in collection.problems:
        session.printer.note(f"not in it: {problem}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "support-bundle")(_bundle)
