"""What a guest reads at its first boot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, StringConstraints

from kumulus.api.base import LocalSecretKey, Model, Rule, cel

USER_DATA_MAX = 32768
"""Characters of inline user data. More belongs in a Secret (up to 1 MiB)."""


class CloudInit(Model):
    """First-boot configuration, given to the guest as a NoCloud disk (cloud-init)."""

    rules = (
        Rule("!(has(self.userData) && has(self.userDataSecret))", "set either userData or userDataSecret, not both"),
    )

    user_data: str | None = Field(
        default=None,
        description="User data: `#cloud-config`, a script, or anything cloud-init takes.",
        max_length=USER_DATA_MAX,
    )
    user_data_secret: LocalSecretKey | None = Field(
        default=None, description="User data from a Secret of the namespace."
    )
    network_data: str | None = Field(
        default=None,
        description="Network configuration, version 1 or 2 of cloud-init's format.",
        max_length=USER_DATA_MAX,
    )
    meta_data: Mapping[str, Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default_factory=dict,
        description="Further keys of the meta data. instance-id and local-hostname are set by Kumulus.",
        max_length=32,
        json_schema_extra=cel(
            Rule(
                "self.all(k, k.matches('^[A-Za-z][-A-Za-z0-9_]{0,62}$') && k != 'instance-id')",
                "keys must be words, and instance-id is set by Kumulus",
            )
        ),
    )


class SshKey(Model):
    """A public key that may log in."""

    rules = (Rule("has(self.secret) != has(self.publicKey)", "set exactly one of secret and publicKey"),)

    secret: LocalSecretKey | None = Field(
        default=None, description="A key of a Secret that holds one public key a line."
    )
    public_key: str | None = Field(
        default=None,
        description="The public key itself, one line as in authorized_keys.",
        max_length=8192,
        pattern=r"^(ssh-|ecdsa-|sk-)[A-Za-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\n\r]*)?$",
    )
