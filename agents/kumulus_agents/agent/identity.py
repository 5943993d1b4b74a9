"""Who an agent is: the bundle it joined with and the credentials it keeps. The only module that reads or writes them.

The state directory has `credentials/` (0700) with one file, replaced atomically, so that identity and
token always belong together. Nothing here is ever logged.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_serializer

from kumulus.api.base import Model

CREDENTIALS = "credentials"
_FILE = "identity.json"
_AUTHORITY = "ca.crt"


class IdentityProblem(Exception):
    """A bundle or the stored credentials cannot be used. The text says what to do."""


class Identity(Model):
    """Which host this is and where its API server answers."""

    server: str = Field(pattern=r"^https://", max_length=2048)
    ca_data: str
    """PEM certificates in base64."""
    host: str = Field(min_length=1, max_length=63)
    namespace: str = Field(min_length=1, max_length=63)

    def authority(self) -> bytes:
        """The PEM certificates. Raises `IdentityProblem`."""
        try:
            return base64.b64decode(self.ca_data, validate=True)
        except binascii.Error:
            raise IdentityProblem("caData is not base64: the bundle was damaged on its way") from None


class JoinBundle(Identity):
    """What `kumulusctl host add` gives an operator to carry to a host."""

    api_version: Literal["kumulus.io/v1alpha1"]
    kind: Literal["JoinBundle"]
    token: SecretStr


class Credentials(Identity):
    """An identity with its current token."""

    token: SecretStr
    issued_at: datetime
    expires_at: datetime

    @field_serializer("token", when_used="json")
    def _bare(self, token: SecretStr) -> str:
        return token.get_secret_value()


def read_bundle(text: str) -> JoinBundle:
    """The bundle in that text. Raises `IdentityProblem` without repeating any of it."""
    try:
        return JoinBundle.model_validate(json.loads(text))
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, problem["loc"])) or "it" for problem in error.errors()}))
        raise IdentityProblem(
            f"this is no join bundle ({fields} does not fit); run kumulusctl host add again"
        ) from None
    except ValueError:
        raise IdentityProblem("this is no join bundle (not JSON); run kumulusctl host add again") from None


class StateDirectory:
    """Where an agent keeps what must outlive it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def instances(self) -> Path:
        """Directories of machines."""
        return self.path / "instances"

    @property
    def authority(self) -> Path:
        """The certificates to trust, as a file."""
        return self.path / CREDENTIALS / _AUTHORITY

    @property
    def _file(self) -> Path:
        return self.path / CREDENTIALS / _FILE

    def prepare(self) -> None:
        """Make the directories, with their modes."""
        for directory, mode in ((self.path, 0o711), (self.path / CREDENTIALS, 0o700), (self.instances, 0o711)):
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            directory.chmod(mode)

    def load(self) -> Credentials:
        """The stored credentials; the file of certificates is made from them. Raises `IdentityProblem`."""
        try:
            credentials = Credentials.model_validate(json.loads(self._file.read_text()))
        except FileNotFoundError:
            raise IdentityProblem(
                f"this host has not joined yet: there is no {self._file}; run kumulus-agent join"
            ) from None
        except (OSError, ValueError) as error:
            raise IdentityProblem(
                f"{self._file} cannot be read ({type(error).__name__}); join again with a fresh bundle"
            ) from None
        self.trust(credentials)
        return credentials

    def trust(self, identity: Identity) -> Path:
        """Write the certificates of an API server to a file and return its path."""
        _write(self.authority, identity.authority())
        return self.authority

    def store(self, credentials: Credentials) -> None:
        """Keep these credentials instead of any others, all at once."""
        _write(self._file, json.dumps(credentials.to_json()).encode())


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once, mode 0600, also across a crash of the machine."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
