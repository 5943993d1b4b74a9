"""Signatures of webhooks. Pure.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

PREFIX = b"whsec_"


def key_of(secret: bytes) -> bytes:
    """The key that a secret stands for: base64 after `whsec_`, else the bytes themselves without the end of the line.
    Raises `ValueError`."""
    text = secret.strip()
    if text.startswith(PREFIX):
        try:
            text = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error as error:
            raise ValueError("what follows whsec_ is not base64") from error
    if not text:
        raise ValueError("it is empty")
    return text


def signed(key: bytes, identity: str, seconds: int, body: bytes) -> Mapping[str, str]:
    """The headers that go with a message: id, time (seconds since 1970) and signature."""
    content = f"{identity}.{seconds}.".encode() + body
    digest = base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    return {"webhook-id": identity, "webhook-timestamp": str(seconds), "webhook-signature": f"v1,{digest}"}
