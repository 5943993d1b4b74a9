"""Redfish: a BMC is asked over HTTPS what a system's power is, and to take it away (DMTF DSP0266).

Only what the BMC's own address serves is asked for; redirections are not followed, and answers are bounded.
"""

from __future__ import annotations

import base64
import json
import ssl
from typing import Any

import aiohttp

from kumulus_controllers.fabric.fencing import FencingError, Power, Target

SECONDS = 10.0
"""At most so long does one request take."""
ANSWER_MAX = 1 << 20
SYSTEMS = "/redfish/v1/Systems"
RESET = "#ComputerSystem.Reset"
STATES = {"On": Power.ON, "Off": Power.OFF}


class Redfish:
    """The method `redfish`."""

    async def power(self, target: Target) -> Power:
        """Whether it is on. Raises `FencingError`."""
        async with _session(target) as session:
            system = await _system(session, target)
            return STATES.get(str(system.get("PowerState")), Power.UNKNOWN)

    async def off(self, target: Target) -> None:
        """Take its power away. Raises `FencingError`."""
        async with _session(target) as session:
            system = await _system(session, target)
            if system.get("PowerState") == "Off":
                return
            action = (system.get("Actions") or {}).get(RESET) or {}
            await _ask(session, target, "POST", action.get("target"), {"ResetType": "ForceOff"})


def _session(target: Target) -> aiohttp.ClientSession:
    bmc = target.bmc
    credentials = base64.b64encode(f"{target.username}:{target.password}".encode()).decode()
    try:
        context = ssl.create_default_context(cadata=bmc.ca_bundle)
    except (ssl.SSLError, ValueError):
        raise FencingError("spec.bmc.caBundle has no certificates.", reason="BmcCertificate") from None
    if bmc.insecure_skip_verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context),
        timeout=aiohttp.ClientTimeout(total=SECONDS),
        headers={"OData-Version": "4.0", "Accept": "application/json", "Authorization": f"Basic {credentials}"},
        trust_env=False,
    )


async def _system(session: aiohttp.ClientSession, target: Target) -> dict[str, Any]:
    """The system that the host is."""
    if target.bmc.system is not None:
        return await _ask(session, target, "GET", f"{SYSTEMS}/{target.bmc.system}")
    members = (await _ask(session, target, "GET", SYSTEMS)).get("Members")
    if not isinstance(members, list) or len(members) != 1 or not isinstance(members[0], dict):
        raise FencingError(
            f"The BMC of {target.host} has not one system but others: say which one the host is (spec.bmc.system).",
            reason="BmcSystem",
        )
    return await _ask(session, target, "GET", members[0].get("@odata.id"))


async def _ask(
    session: aiohttp.ClientSession, target: Target, verb: str, path: object, body: dict[str, str] | None = None
) -> dict[str, Any]:
    if not isinstance(path, str) or not path.startswith("/redfish/v1/"):
        raise FencingError(f"The BMC of {target.host} does not say how to switch it off.", reason="BmcUnfit")
    url = target.bmc.address.rstrip("/") + path
    try:
        async with session.request(verb, url, json=body, allow_redirects=False) as answer:
            text = await answer.content.read(ANSWER_MAX)
            if answer.status in (401, 403):
                raise FencingError(f"The BMC of {target.host} does not accept the credentials.", reason="BmcRefuses")
            if not 200 <= answer.status < 300:
                raise FencingError(f"The BMC of {target.host} answers with {answer.status}.", reason="BmcFails")
    except (ssl.SSLError, aiohttp.ClientSSLError) as error:
        why = f"The certificate of the BMC of {target.host} cannot be verified: set spec.bmc.caBundle."
        raise FencingError(why, reason="BmcCertificate") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        why = f"The BMC of {target.host} does not answer ({type(error).__name__})."
        raise FencingError(why, reason="BmcUnreachable") from error
    try:
        found = json.loads(text) if text.strip() else {}
    except ValueError:
        raise FencingError(f"The BMC of {target.host} does not speak Redfish.", reason="BmcUnfit") from None
    return found if isinstance(found, dict) else {}
