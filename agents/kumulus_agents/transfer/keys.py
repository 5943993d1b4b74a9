"""The program that makes a key: `python -I -m kumulus_agents.transfer.keys HOST`.

Prints one JSON object with `key` and `request`, both PEM. A program of its own, so that no agent keeps the ten
mebibytes of a cryptographic library in memory for what it does once.
"""

from __future__ import annotations

import json
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def made(host: str) -> dict[str, str]:
    """A key and the request for its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"key": private.decode(), "request": request.public_bytes(serialization.Encoding.PEM).decode()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(made(sys.argv[1])))
