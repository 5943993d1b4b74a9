"""The API server as a command sees it: synchronous, one identity, objects as the API's JSON.

Kubeconfig, contexts, exec plugins and TLS are the `kubernetes` client's. Processes use `kumulus.kube`;
a command that runs for a second has no use for an event loop. Errors are those of `kumulus.kube.errors`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes import client as kube_client
from kubernetes import config as kube_config

from kumulus.api.base import Kind
from kumulus.cli.problem import Problem, Usage
from kumulus.cli.terminal import one_line
from kumulus.kube import errors

Raw = dict[str, Any]

PAGE = 500
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
_MISSHAPEN = (ValueError, TypeError, KeyError, AttributeError)
"""What the client library raises for a kubeconfig that is YAML, but not a kubeconfig."""
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9:._-]*[A-Za-z0-9])?")
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Cluster:
    """One API server, as one user, with the namespace that is meant when none is named."""

    def __init__(self, configuration: kube_client.Configuration, *, namespace: str) -> None:
        configuration.retries = False
        self._configuration = configuration
        self._rest = kube_client.rest.RESTClientObject(configuration)
        self.namespace = namespace

    @classmethod
    def connect(cls, kubeconfig: Path | None = None, context: str | None = None) -> Cluster:
        """As kubectl would: the file given, else $KUBECONFIG, else ~/.kube/config, else the pod's own account.

        No request is made yet. Raises `Problem` when there is no usable configuration.
        """
        configuration = kube_client.Configuration()
        file = str(kubeconfig) if kubeconfig else None
        try:
            kube_config.load_kube_config(config_file=file, context=context, client_configuration=configuration)
            contexts, active = kube_config.list_kube_config_contexts(config_file=file)
        except (kube_config.ConfigException, yaml.YAMLError, OSError, *_MISSHAPEN) as error:
            if kubeconfig is None and context is None and _POD_NAMESPACE.exists():
                kube_config.load_incluster_config(client_configuration=configuration)
                return cls(configuration, namespace=_POD_NAMESPACE.read_text().strip())
            raise Problem(
                f"There is no usable kubeconfig ({' '.join(str(error).split())}); name one with --kubeconfig FILE or $KUBECONFIG."
            ) from error
        chosen = next((c for c in contexts if c["name"] == context), active) if context else active
        return cls(configuration, namespace=(chosen or {}).get("context", {}).get("namespace") or "default")

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._configuration.host)

    @property
    def ca(self) -> bytes | None:
        """The PEM certificates that the kubeconfig trusts; None when it names none."""
        file = self._configuration.ssl_ca_cert
        return Path(file).read_bytes() if file else None

    def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: float = READ_SECONDS,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": accept, "User-Agent": "kumulusctl", "Content-Type": content_type}
        for auth in self._configuration.auth_settings().values():
            if auth["in"] == "header" and auth["value"]:
                headers[auth["key"]] = auth["value"]
        url = f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            answer: urllib3.BaseHTTPResponse = self._rest.request(
                method, url, headers=headers, body=body, _request_timeout=(CONNECT_SECONDS, timeout)
            ).response
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise errors.Unreachable(_cause(error)) from error
        except kube_client.exceptions.ApiException as error:
            raise errors.Unreachable(str(error.reason)) from error
        return answer

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Raw:
        """One request, its JSON answer. Raises `errors.KubeError`."""
        data = self._read(self._open(method, path, query=query, body=body, content_type=content_type))
        try:
            parsed: Raw = json.loads(data) if data else {}
        except ValueError as error:
            raise errors.Unreachable("something answers there that is not a Kubernetes API server") from error
        return parsed

    def text(self, path: str, *, query: Mapping[str, str] | None = None) -> str:
        """What is there that is no JSON, such as a pod's log. Raises `errors.KubeError`."""
        return self._read(self._open("GET", path, query=query, accept="*/*")).decode(errors="replace")

    @staticmethod
    def _read(response: urllib3.BaseHTTPResponse) -> bytes:
        try:
            data: bytes = response.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise errors.Unreachable(_cause(error)) from error
        finally:
            response.release_conn()
        if response.status >= 400:
            raise errors.from_response(response.status, data)
        return data

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Raw:
        """The object. Raises `errors.NotFound`."""
        return self.request("GET", _path(kind, namespace, name))

    def find(self, kind: Kind, name: str, namespace: str | None = None) -> Raw | None:
        """The object, or None when there is none (but `errors.NotFound` when the kind itself is unknown)."""
        try:
            return self.get(kind, name, namespace)
        except errors.NotFound as error:
            if error.reason != "NotFound":
                raise
            return None

    def objects(
        self, kind: Kind, namespace: str | None = None, *, fields: str | None = None, labels: str | None = None
    ) -> list[Raw]:
        """All objects, of all namespaces when `namespace` is None, page by page."""
        selectors = {"fieldSelector": fields, "labelSelector": labels}
        query = {"limit": str(PAGE)} | {name: value for name, value in selectors.items() if value}
        found: list[Raw] = []
        while True:
            answer = self.request("GET", _path(kind, namespace), query=query)
            for item in answer["items"]:
                found.append({"apiVersion": kind.api_version, "kind": kind.kind, **item})
            if not answer["metadata"].get("continue"):
                return found
            query["continue"] = answer["metadata"]["continue"]

    def create(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Raw:
        """Create it. Raises `errors.AlreadyExists`."""
        full = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return self.request("POST", _path(kind, namespace), body=full)

    def rehearse(self, kind: Kind, body: Mapping[str, Any], namespace: str | None = None) -> Raw:
        """What would be created, as admission leaves it; nothing is. Raises as `create` does."""
        full = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        return self.request("POST", _path(kind, namespace), query=query, body=full)

    def patch(self, kind: Kind, name: str, patch: Mapping[str, Any], namespace: str | None = None) -> Raw:
        """Merge-patch the object as the user (RFC 7386)."""
        path = _path(kind, namespace, name)
        return self.request("PATCH", path, body=patch, content_type="application/merge-patch+json")

    def delete(self, kind: Kind, name: str, namespace: str | None = None, *, uid: str | None = None) -> None:
        """Ask for its deletion. Raises `errors.NotFound`."""
        body: Raw = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        self.request("DELETE", _path(kind, namespace, name), body=body)

    def follow(self, kind: Kind, name: str, namespace: str | None = None, *, seconds: float) -> Iterator[Raw | None]:
        """The object as it is, then again at each change, None when it is gone; ends after so many seconds.

        A watch that breaks is opened again, so every state lasts until it is yielded or replaced by a newer one.
        """
        deadline = time.monotonic() + seconds
        while True:
            current = self.find(kind, name, namespace)
            yield current
            left = deadline - time.monotonic()
            if left <= 0:
                return
            since = current["metadata"]["resourceVersion"] if current else None
            yield from self._changes(kind, name, namespace, since=since, seconds=left)
            if time.monotonic() >= deadline:
                return

    def _changes(
        self, kind: Kind, name: str, namespace: str | None, *, since: str | None, seconds: float
    ) -> Iterator[Raw | None]:
        query = {"watch": "1", "fieldSelector": f"metadata.name={name}", "timeoutSeconds": str(max(1, int(seconds)))}
        if since is not None:
            query["resourceVersion"] = since
        response = self._open("GET", _path(kind, namespace), query=query, timeout=max(1.0, seconds))
        try:
            if response.status >= 400:
                raise errors.from_response(response.status, response.read())
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield None if event["type"] == "DELETED" else event["object"]
        except (urllib3.exceptions.HTTPError, OSError):
            return
        finally:
            response.close()


def _path(kind: Kind, namespace: str | None, name: str | None = None) -> str:
    """The path of a collection or an object. Names come from a command line: none reaches another path."""
    for text in (namespace, name):
        if text is not None and not _NAME.fullmatch(text):
            raise Usage(f"{one_line(text)!r} is not a name: a name is made of letters, digits, - and the like.")
    return kind.path(namespace, name)


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line)


def _cause(error: BaseException) -> str:
    """The innermost reason in a few words: urllib3 wraps its errors several times."""
    text = str(getattr(error, "reason", None) or error)
    for word in ("Connection refused", "timed out", "Name or service not known", "certificate verify failed"):
        if word.lower() in text.lower():
            return word.lower()
    return " ".join(text.split())[:200] or type(error).__name__
