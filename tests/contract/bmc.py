"""A BMC: sushy-tools' Redfish emulator over TLS with a password, whose systems' power a test can read and set."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kumulus.api.fabric import Bmc
from kumulus_lab import deadline

USER, PASSWORD = "admin", "hunter-2-hunter"
SYSTEM = "27946b59-9e44-4fa7-8e91-f3527a1ef094"


@dataclass(frozen=True, slots=True)
class Emulator:
    """Where it is, and the power of its one system."""

    address: str
    certificate: str
    state: Path

    def bmc(self, **changes: object) -> Bmc:
        """As a Host's spec names it."""
        spec = {"type": "redfish", "address": self.address, "credentialsSecret": "bmc", "caBundle": self.certificate}
        return Bmc.model_validate({**spec, **changes})

    @property
    def power(self) -> str:
        """On or Off."""
        return self.state.read_text()

    def press(self) -> None:
        """Somebody switches the system on."""
        self.state.write_text("On")


def _certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bmc")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = directory / "bmc.crt", directory / "bmc.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private


@contextmanager
def emulator(directory: Path, systems: int = 1) -> Iterator[Emulator]:
    """It runs inside the block; its first system is on."""
    certificate, private = _certificate(directory)
    state, users, config = directory / "power", directory / "users", directory / "config"
    state.write_text("On")
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    users.write_text(f"{USER}:{hashed}\n")
    known = [{"uuid": SYSTEM[:-1] + str(n), "name": f"s{n}", "power_state": "On", "nics": []} for n in range(systems)]
    config.write_text(
        f"SUSHY_EMULATOR_AUTH_FILE = {str(users)!r}\nSUSHY_EMULATOR_STATE_DIR = {str(directory)!r}\n"
        f"SUSHY_EMULATOR_FAKE_SYSTEMS = {json.dumps(known)}\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "tests.contract.bmc", str(state), "--fake", "-i", "127.0.0.1", "-p", str(port)]
    argv += ["--ssl-certificate", str(certificate), "--ssl-key", str(private), "--config", str(config)]
    log = (directory / "bmc.log").open("w")
    root = Path(__file__).parents[2]
    running = subprocess.Popen(argv, cwd=root, stdout=log, stderr=log, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    try:

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        deadline.until(answers, f"the emulator ({directory / 'bmc.log'})", seconds=30, every=0.1)
        yield Emulator(f"https://127.0.0.1:{port}", certificate.read_text(), state)
    finally:
        running.terminate()
        running.wait(10)
        log.close()


def serve(state: Path) -> None:
    """The emulator as it is, with systems whose power is what a file says."""
    from sushy_tools.emulator.main import main
    from sushy_tools.emulator.resources.systems.fakedriver import FakeDriver

    def get(self: FakeDriver, identity: str) -> str:
        self._get(identity)
        return state.read_text()

    def put(self: FakeDriver, identity: str, wanted: str) -> None:
        self._get(identity)
        state.write_text("Off" if wanted in ("ForceOff", "GracefulShutdown") else "On")

    FakeDriver.get_power_state, FakeDriver.set_power_state = get, put
    main()


if __name__ == "__main__":
    given = Path(sys.argv.pop(1))
    sys.exit(serve(given))
