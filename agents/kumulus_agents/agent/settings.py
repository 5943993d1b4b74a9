"""Settings of an agent: `<state>/agent.yaml`, then the environment (KUMULUS_AGENT_...)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kumulus_agents.network.settings import NetworkSettings
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.transfer.settings import TransferSettings
from kumulus_agents.watchdog.daemon import SOCKET

PREFIX = "KUMULUS_AGENT_"
FILE = "agent.yaml"


class SettingsProblem(Exception):
    """The settings cannot be used. The text names the field."""


class Timings(BaseModel):
    """How often an agent does what it does all the time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lease_seconds: int = Field(default=20, ge=2, le=600, description="Duration of the host's Lease.")
    renew_seconds: float = Field(default=6.0, ge=0.5, le=300, description="How often it is renewed.")
    report_seconds: float = Field(default=30.0, ge=0.5, le=3600, description="How often the host is looked at.")
    beat_seconds: float = Field(
        default=5.0,
        ge=0.5,
        le=60,
        description="How often it leaves its heartbeat in pools that it shares; the same on all hosts.",
    )
    workers: int = Field(default=8, ge=1, le=64, description="Work orders worked on at once.")

    @model_validator(mode="after")
    def _in_time(self) -> Timings:
        if self.renew_seconds * 2 > self.lease_seconds:
            raise ValueError("renew_seconds must be at most half of lease_seconds, or one lost renewal ends the lease")
        return self


class AgentSettings(Timings):
    """Everything an administrator of the host can decide."""

    hypervisor: str = Field(default="libvirt", description="Driver of the hypervisor: libvirt or simulated.")
    hypervisor_settings: dict[str, Any] = Field(default_factory=dict, description="Settings of that driver.")
    storage: StorageSettings = Field(default_factory=StorageSettings, description="Pools and image imports.")
    transfer: TransferSettings = Field(
        default_factory=TransferSettings, description="How images are exchanged with other hosts."
    )
    network: NetworkSettings = Field(default_factory=NetworkSettings, description="Networks of machines.")
    watchdog_socket: Path = Field(
        default=SOCKET, description="Where the watchdog of this host is reached (kumulus-agent watchdog)."
    )
    http_address: str = Field(default="127.0.0.1", description="Where health and metrics are served.")
    http_port: int = Field(default=9410, ge=0, le=65535, description="Port of health and metrics; 0: a free one.")


def load(
    state: Path | None, overrides: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> AgentSettings:
    """Read the settings. KUMULUS_AGENT_STORAGE__FETCH__ALLOWED_NETWORKS=... reaches into sections; values are YAML.

    Raises `SettingsProblem`.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    try:
        if state is not None and (state / FILE).exists():
            values = yaml.safe_load((state / FILE).read_text()) or {}
        for name, text in sorted(environment.items()):
            if name.startswith(PREFIX):
                _set(values, name.removeprefix(PREFIX).lower().split("__"), yaml.safe_load(text))
        values |= {name: value for name, value in (overrides or {}).items() if value is not None}
        return AgentSettings.model_validate(values)
    except (ValueError, OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise SettingsProblem(f"the agent's settings cannot be used: {error}") from error


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value
