"""The lab's own certificate authority and what it signs.

EC P-256 keys, made anew for each lab, readable by their owner only. Never for production.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = datetime.timedelta(days=365)
_SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as files in PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates for one lab."""

    pair: Pair

    @staticmethod
    def ensure(directory: Path) -> Authority:
        """The authority in that directory, made when it is not there yet."""
        pair = Pair(certificate=directory / "ca.crt", key=directory / "ca.key")
        if not pair.certificate.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name("kumulus-lab", ())
            builder = (
                _builder(subject=name, issuer=name, public_key=key.public_key())
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .add_extension(_usage(signs=True), critical=True)
            )
            _write(pair, key, builder.sign(key, hashes.SHA256()))
        return Authority(pair=pair)

    def ensure_client(self, pair: Pair, user: str, groups: Sequence[str] = ()) -> Pair:
        """A client certificate for that Kubernetes user and its groups."""
        if not pair.certificate.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            self._issue(pair, key, _name(user, groups), ExtendedKeyUsageOID.CLIENT_AUTH, ())
        return pair

    def issue_server(self, pair: Pair, name: str, addresses: Sequence[str]) -> Pair:
        """A server certificate for names and addresses, made anew each time."""
        key = ec.generate_private_key(ec.SECP256R1())
        self._issue(pair, key, _name(name, ()), ExtendedKeyUsageOID.SERVER_AUTH, addresses)
        return pair

    def _issue(
        self,
        pair: Pair,
        key: ec.EllipticCurvePrivateKey,
        name: x509.Name,
        usage: x509.ObjectIdentifier,
        addresses: Sequence[str],
    ) -> None:
        signer = serialization.load_pem_private_key(self.pair.key.read_bytes(), password=None)
        if not isinstance(signer, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{self.pair.key} is not an EC key")
        authority = x509.load_pem_x509_certificate(self.pair.certificate.read_bytes())
        builder = (
            _builder(subject=name, issuer=authority.subject, public_key=key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if addresses:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general_name(word) for word in addresses]), critical=False
            )
        _write(pair, key, builder.sign(signer, hashes.SHA256()))


def ensure_signing_key(path: Path) -> Path:
    """A key to sign service account tokens with."""
    if not path.exists():
        _write_key(path, ec.generate_private_key(ec.SECP256R1()))
    return path


def _builder(
    *, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFETIME)
    )


def _name(user: str, groups: Sequence[str]) -> x509.Name:
    """Kubernetes reads the user from the common name and groups from organizations."""
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _general_name(word: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(word))
    except ValueError:
        return x509.DNSName(word)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _write(pair: Pair, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    """The key first: a certificate that is there has its key."""
    _write_key(pair.key, key)
    pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
