"""`kumulusctl support-bundle` against a server that answers as an API server would: what is in the file, and what is not."""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from kumulus.cli.people import main

SECRET = "hunter-2-horses"
LOG = f'{{"event": "started", "host": "h1"}}\n{{"event": "odd", "password": "{SECRET}"}}\n'
MACHINE = {
    "metadata": {"name": "web1", "namespace": "shop", "annotations": {"note": SECRET}},
    "spec": {"instanceType": "small", "cloudInit": {"userData": f"#cloud-config\npassword: {SECRET}"}},
    "status": {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False", "message": "no host fits"}]},
}
CONSOLE = {
    "metadata": {"name": "c", "namespace": "shop"},
    "spec": {"vm": "web1"},
    "status": {"log": f"login: {SECRET}"},
}
EVENT = {
    "metadata": {"name": "e", "namespace": "shop"},
    "reason": "Placed",
    "note": f"fetched https://bob:{SECRET}@images.example.com/a",
    "regarding": {"apiVersion": "compute.kumulus.io/v1alpha1", "kind": "VirtualMachine", "name": "web1"},
}
OTHERS = {**EVENT, "regarding": {"apiVersion": "v1", "kind": "Pod", "name": "somebody"}}
POD = {"metadata": {"name": "controllers-1"}, "spec": {"containers": [{"name": "controllers"}, {"name": "silent"}]}}
LISTS = {
    "/apis/compute.kumulus.io/v1alpha1/virtualmachines": [MACHINE],
    "/apis/compute.kumulus.io/v1alpha1/consolerequests": [CONSOLE],
    "/apis/events.k8s.io/v1/events": [EVENT, OTHERS],
    "/apis/coordination.k8s.io/v1/leases": [
        {"metadata": {"name": "kumulus-controllers", "namespace": "kumulus-system"}, "spec": {"holderIdentity": "one"}},
        {"metadata": {"name": "other", "namespace": "shop"}, "spec": {"holderIdentity": SECRET}},
    ],
    "/api/v1/namespaces/kumulus-system/pods": [POD],
}


@dataclass
class Server:
    """What was asked for, and how it is reached."""

    url: str
    asked: list[str]
    kubeconfig: Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            asked.append(path)
            if path.endswith("/log"):
                silent = parse_qs(urlsplit(self.path).query)["container"] == ["silent"]
                return self.say(403 if silent else 200, json.dumps({"message": "no"}) if silent else LOG)
            if path == "/metrics":
                return self.say(200, "kumulus_leading 1.0\n")
            if path == "/version":
                return self.say(200, json.dumps({"gitVersion": "v1.34.0", "platform": "linux/amd64"}))
            if path.endswith("/zones"):
                return self.say(403, json.dumps({"reason": "Forbidden", "message": "zones are forbidden"}))
            return self.say(200, json.dumps({"metadata": {}, "items": LISTS.get(path, [])}))

        def say(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    url = f"http://127.0.0.1:{http.server_port}"
    parts: Mapping[str, Any] = {
        "clusters": [{"name": "a", "cluster": {"server": url}}],
        "users": [{"name": "a", "user": {}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(dict(parts)))
    yield Server(url, asked, tmp_path / "kubeconfig")
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def bundle(server: Server, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Makes one with these options, and reads it."""

    def make(*options: str) -> dict[str, str]:
        path = tmp_path / "bundle.tar.gz"
        assert main(["--kubeconfig", str(server.kubeconfig), "support-bundle", str(path), *options]) == 0
        assert path.stat().st_mode & 0o777 == 0o600
        found = {}
        with tarfile.open(path) as tar:
            for entry in tar:
                file = tar.extractfile(entry)
                assert file is not None
                found[entry.name.removeprefix("bundle/")] = file.read().decode()
        return found

    return make


def test_what_helps_is_in_it_and_a_planted_secret_is_nowhere(
    server: Server, bundle: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "agent.log").write_text(LOG)
    options = (
        "--log",
        str(tmp_path / "agent.log"),
        "--log",
        str(tmp_path / "none.log"),
        "--metrics",
        f"{server.url}/metrics",
    )
    found = bundle(*options)
    assert not [name for name, text in found.items() if SECRET in text]
    (machine,) = json.loads(found["objects/virtualmachines.compute.kumulus.io.json"])
    assert machine["metadata"]["name"] == "web1" and machine["spec"]["instanceType"] == "small"
    assert machine["status"] == MACHINE["status"]
    assert json.loads(found["versions.json"])["server"]["gitVersion"] == "v1.34.0"
    assert [lease["spec"]["holderIdentity"] for lease in json.loads(found["leases.json"])] == ["one"]
    (event,) = json.loads(found["events.json"])
    assert (event["reason"], event["note"]) == ("Placed", "fetched https://images.example.com/a")
    for log in ("logs/pods/controllers-1.controllers.log", "logs/1-agent.log"):
        assert '"event": "started", "host": "h1"' in found[log]
    assert found["metrics/1.txt"] == "kumulus_leading 1.0\n"
    problems = found["problems.txt"]
    assert "zones: " in problems and "log of controllers-1 (silent)" in problems and "none.log: " in problems


def test_secrets_are_not_even_asked_for(server: Server, bundle: Callable[..., dict[str, str]]) -> None:
    bundle("--metrics", "http://127.0.0.1:1/metrics")
    assert "/apis/compute.kumulus.io/v1alpha1/virtualmachines" in server.asked
    assert not [path for path in server.asked if "secrets" in path]


def test_what_is_there_is_not_overwritten_and_nothing_half_made_stays(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.tar.gz"
    there.write_text("mine")
    words = ["--kubeconfig", str(server.kubeconfig), "support-bundle"]
    assert main([*words, str(there)]) == 1
    assert there.read_text() == "mine" and "cannot be made" in capsys.readouterr().err
    away = yaml.safe_load(server.kubeconfig.read_text())
    away["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
    server.kubeconfig.write_text(yaml.safe_dump(away))
    assert main([*words, str(tmp_path / "half.tar.gz")]) == 1
    assert not (tmp_path / "half.tar.gz").exists()
