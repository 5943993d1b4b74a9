"""Settings of a process: a YAML file named by $KUMULUS_CONFIG, then the environment, then the command line."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class ProcessSettings(BaseModel):
    """What every process can be told."""

    model_config = ConfigDict(extra="forbid")

    kubeconfig: Path | None = Field(default=None, description="Kubeconfig; default as kubectl, or the pod's own.")
    namespace: str = Field(default="kumulus-system", description="Where the leader's Lease lives.")
    lease: str = Field(default="kumulus-controllers", description="Name of the leader's Lease.")
    lease_seconds: float = Field(default=40.0, ge=2, description="How long leadership outlives its last renewal.")
    lock_file: Annotated[Path | None, BeforeValidator(lambda given: given or None)] = Field(
        default=None,
        description="A file of this machine that is locked while the process lives, so that the next one with the same "
        "file can tell that it is dead, and leads without waiting for the Lease; empty for none.",
    )
    identity: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
        pattern=r"^[^@]+$",
        description="Name in the election.",
    )
    http_address: str = Field(default="127.0.0.1", description="Where health and metrics are served.")
    http_port: int = Field(default=8080, ge=0, le=65535, description="Port of health and metrics; 0 takes a free one.")
    workers: int = Field(default=16, ge=1, le=256, description="Passes at once, per controller.")
    include: list[str] = Field(
        default_factory=lambda: ["controllers"], description="Modules to load, with all below them."
    )
    exclude: list[str] = Field(default_factory=list, description="Modules to leave out, with all below them.")
    modules: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Settings of modules, by their names.")


_LISTS = {"include", "exclude"}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OSError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise OSError(f"{path} must be a mapping of settings, such as `workers: 16`")
    return values


def load(overrides: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> ProcessSettings:
    """Read the settings. Raises `pydantic.ValidationError` or `OSError`, which name the field or the file."""
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    if environment.get("KUMULUS_CONFIG"):
        values = _read(Path(environment["KUMULUS_CONFIG"]))
    for name in ProcessSettings.model_fields:
        text = environment.get(f"KUMULUS_{name.upper()}")
        if text is not None and name != "modules":
            values[name] = [part.strip() for part in text.split(",") if part.strip()] if name in _LISTS else text
    values |= {name: value for name, value in (overrides or {}).items() if value is not None}
    return ProcessSettings.model_validate(values)
