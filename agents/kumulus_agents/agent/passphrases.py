"""The passphrases of this host's encrypted volumes, read from the Secrets that orders name. Kept nowhere."""

from __future__ import annotations

from kumulus.api.volume_order import PASSPHRASE
from kumulus.kube.errors import KubeError
from kumulus_agents.agent.missing import Missing
from kumulus_agents.agent.secrets import Secrets
from kumulus_agents.storage.passphrase import EncryptedVolumes, Passphrase
from kumulus_agents.storage.protocol import StorageDriver, StorageError


class Passphrases:
    """The Secrets in one host's namespace."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    async def read(self, name: str) -> Passphrase:
        """What the Secret of that name has. Raises `StorageError` (SecretNotFound, SecretUnreadable)."""
        try:
            text = (await self._secrets.read(name, "the passphrase of a volume"))[PASSPHRASE].decode()
        except Missing as missing:
            raise StorageError(str(missing), reason=missing.reason) from None
        except KubeError as error:
            raise StorageError(
                "The Secret with the volume's passphrase could not be read from the API server. It is tried again.",
                reason="SecretNotFound",
            ) from error
        except (KeyError, UnicodeDecodeError):
            raise StorageError("The Secret with the volume's passphrase has none.", reason="SecretUnreadable") from None
        return Passphrase(text)


def encrypting(driver: StorageDriver) -> EncryptedVolumes:
    """The driver, as one that can have encrypted volumes. Raises `StorageError(reason="EncryptionUnsupported")`."""
    if not isinstance(driver, EncryptedVolumes):
        raise StorageError(
            "Pools of this kind cannot encrypt volumes. Have the class select pools of the driver dir.",
            reason="EncryptionUnsupported",
            retryable=False,
        )
    return driver
