"""The lab's authority: what it signs is what TLS and Kubernetes read."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from kumulus_lab import kubeconfig
from kumulus_lab.certificates import Authority, Pair, ensure_signing_key


def _pair(directory: Path, name: str) -> Pair:
    return Pair(certificate=directory / f"{name}.crt", key=directory / f"{name}.key")


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_server_certificate_is_good_for_each_of_its_addresses(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path)
    pair = authority.issue_server(_pair(tmp_path, "server"), "api", ["127.0.0.1", "10.213.0.1", "kubernetes"])
    store = verification.Store([_load(authority.pair.certificate)])
    for subject in (
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("10.213.0.1")),
        x509.DNSName("kubernetes"),
    ):
        verifier = verification.PolicyBuilder().store(store).build_server_verifier(subject)
        assert verifier.verify(_load(pair.certificate), [])


def test_a_client_certificate_says_user_and_groups(tmp_path: Path) -> None:
    pair = Authority.ensure(tmp_path).ensure_client(_pair(tmp_path, "admin"), "ann", ["system:masters", "ops"])
    subject = _load(pair.certificate).subject
    assert [each.value for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["ann"]
    groups = [each.value for each in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    assert groups == ["system:masters", "ops"]


def test_an_authority_is_made_once(tmp_path: Path) -> None:
    first = Authority.ensure(tmp_path).pair.certificate.read_bytes()
    assert Authority.ensure(tmp_path).pair.certificate.read_bytes() == first


def test_keys_and_kubeconfigs_are_their_owners_only(tmp_path: Path) -> None:
    authority = Authority.ensure(tmp_path)
    key = ensure_signing_key(tmp_path / "sa.key")
    config = kubeconfig.write(
        tmp_path / "c", server="https://127.0.0.1:1", authority=authority.pair.certificate, token="t"
    )
    for path in (authority.pair.key, key, config):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert yaml.safe_load(config.read_text())["users"][0]["user"] == {"token": "t"}
    assert kubeconfig.server(config) == "https://127.0.0.1:1"
