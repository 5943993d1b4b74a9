"""The certificate authority of an installation: hosts know each other by what it signs, and by nothing else.

Its key is in one Secret of the controllers' namespace. It signs for the name it is told, never for what a request says.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kumulus.api.host import transfer_name
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists

AUTHORITY_SECRET = "kumulus-authority"  # noqa: S105
AUTHORITY_NAMESPACE = "kumulus-system"
AUTHORITY_LIFETIME = timedelta(days=3650)
LIFETIME = timedelta(hours=24)
RENEW_AT = 2 / 3
"""Share of a certificate's life after which it is renewed."""
SKEW = timedelta(minutes=5)


class BadRequest(ValueError):
    """A signing request that is none, or for a key that is not signed for."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def made(cls, now: datetime) -> Authority:
        """A new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Kumulus hosts")
        certificate = (
            _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def parse(cls, certificate: bytes, key: bytes) -> Authority:
        """From PEM. Raises `ValueError`."""
        private = serialization.load_pem_private_key(key, password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError("the key of the authority is no EC key")
        return cls(x509.load_pem_x509_certificate(certificate), private)

    def pem(self) -> str:
        """The certificate; public."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def key_pem(self) -> str:
        """The key; for its Secret only."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def sign(self, request: str, host: str, now: datetime) -> str:
        """A certificate for the key of that request, in the name of `host`, to serve and to ask with. Raises `BadRequest`."""
        return (
            _builder(_name(host), self.certificate.subject, requested_key(request), now, LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(transfer_name(host))]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
            .decode()
        )

    def good_for(self, certificate: str, request: str, now: datetime) -> timedelta:
        """How long that certificate will do before a new one is due; nothing when it is for another key or signer."""
        try:
            found = x509.load_pem_x509_certificate(certificate.encode())
            found.verify_directly_issued_by(self.certificate)
            if found.public_key() != requested_key(request):
                return timedelta()
        except (ValueError, TypeError, InvalidSignature):
            return timedelta()
        begin, end = found.not_valid_before_utc, found.not_valid_after_utc
        return max(begin + (end - begin) * RENEW_AT - now, timedelta())


def requested_key(request: str) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request, whose sender has shown to have the private one. Raises `BadRequest`."""
    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        key = parsed.public_key()
        signed = parsed.is_signature_valid
    except Exception as error:  # whatever a parser of hostile text trips over
        raise BadRequest(f"no certificate signing request ({type(error).__name__})") from error
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequest("a signing request must be for an EC key on P-256 and signed with it")
    return key


async def load(client: KubeClient, now: datetime) -> Authority:
    """The installation's authority; made when there is none. Raises `KubeError`, and `ValueError` for a Secret that is
    not what it should be."""
    found = await client.find(SECRET, AUTHORITY_SECRET, AUTHORITY_NAMESPACE)
    if found is None:
        made = Authority.made(now)
        body = {
            "metadata": {"name": AUTHORITY_SECRET},
            "type": "kubernetes.io/tls",
            "immutable": True,
            "stringData": {"tls.crt": made.pem(), "tls.key": made.key_pem()},
        }
        try:
            await client.create(SECRET, body, AUTHORITY_NAMESPACE)
            return made
        except AlreadyExists:
            found = await client.get(SECRET, AUTHORITY_SECRET, AUTHORITY_NAMESPACE)
    data = found.get("data") or {}
    return Authority.parse(*(base64.b64decode(data.get(key, "")) for key in ("tls.crt", "tls.key")))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    begin = now.astimezone(UTC) - SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
