"""Certificates of load balancers: read from a tenant's Secret, checked, and copied to the hosts that end TLS with them.

What a host gets was written anew from what was parsed: certificates and one key, and nothing else that stood there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from kumulus.api.balancing import PEM, tls_secret_name
from kumulus.api.host import WorkOrder
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus.kube.errors import AlreadyExists
from kumulus_controllers import order_secret
from kumulus_controllers.network.lack import Lack

CERTIFICATE, KEY = "tls.crt", "tls.key"
LARGEST = 262144
"""Bytes of certificates, or of a key."""
_SHORTEST_RSA = 2048


@dataclass(frozen=True, slots=True)
class Identity:
    """Certificates and their key, PEM."""

    pem: bytes = field(repr=False)
    digest: str


def parse(data: Mapping[str, bytes], name: str, now: datetime) -> Identity | Lack:
    """What a Secret of the type kubernetes.io/tls has, or why it cannot be used. Pure."""
    for part in (CERTIFICATE, KEY):
        if not data.get(part):
            return Lack(
                "SecretNotCertificate",
                f"Secret {name} has no {part}. Make it so: kubectl create secret tls {name} --cert=FILE --key=FILE",
            )
        if len(data[part]) > LARGEST:
            return Lack("SecretNotCertificate", f"{part} of Secret {name} is larger than {LARGEST} bytes.")
    try:
        chain = x509.load_pem_x509_certificates(data[CERTIFICATE])
    except ValueError:
        return Lack("SecretNotCertificate", f"{CERTIFICATE} of Secret {name} has no certificates in the form PEM.")
    try:
        key = load_pem_private_key(data[KEY], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return Lack("SecretNotCertificate", f"{KEY} of Secret {name} is no private key in the form PEM, unencrypted.")
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) or (
        isinstance(key, rsa.RSAPrivateKey) and key.key_size < _SHORTEST_RSA
    ):
        return Lack("SecretNotCertificate", f"{KEY} of Secret {name} is neither ECDSA nor RSA of {_SHORTEST_RSA} bits.")
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        certified = chain[0].public_key().public_bytes(*spki)
    except (ValueError, UnsupportedAlgorithm):
        return Lack(
            "SecretNotCertificate",
            f"The first certificate in {CERTIFICATE} of Secret {name} is for no key of a known type.",
        )
    if certified != key.public_key().public_bytes(*spki):
        return Lack(
            "SecretNotCertificate",
            f"{KEY} of Secret {name} is not the key of the first certificate in its {CERTIFICATE}.",
        )
    if chain[0].not_valid_after_utc <= now:
        until = chain[0].not_valid_after_utc
        return Lack("CertificateExpired", f"The certificate in Secret {name} ended at {until:%Y-%m-%dT%H:%M:%SZ}.")
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in chain)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(pem, hashlib.sha256(pem).hexdigest())


async def read(client: KubeClient, name: str, namespace: str | None, now: datetime) -> Identity | Lack:
    """What the tenant's Secret of that name has now: a live read, never cached."""
    found = await client.find(SECRET, name, namespace)
    if found is None:
        return Lack(
            "SecretNotFound",
            f"There is no Secret {name} in the namespace. Make it: kubectl create secret tls {name} --cert=FILE --key=FILE",
        )
    try:
        data = {key: base64.b64decode(text, validate=True) for key, text in (found.get("data") or {}).items()}
    except binascii.Error:
        return Lack("SecretNotCertificate", f"Secret {name} is not valid base64.")
    return parse(data, name, now)


async def hand_over(client: KubeClient, balancer_uid: str, identity: Identity, order: WorkOrder) -> bool:
    """Have it in the namespace of the host of that order, with which it goes. There already: nothing. False when somebody else
    writes it at the same time: then it is to be tried again."""
    name = tls_secret_name(balancer_uid, identity.digest)
    body = order_secret.belonging(name, order, {"stringData": {PEM: identity.pem.decode()}})
    try:
        await order_secret.give(client, body, order)
    except AlreadyExists:
        return False
    return True
