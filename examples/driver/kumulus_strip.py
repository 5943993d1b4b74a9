"""The fencing method `strip`: a power strip that answers over HTTP, at `/outlets/N` for each outlet.

GET says `on` or `off`; PUT of `off` takes the power away. In `spec.bmc` of a Host `address` is the strip (`10.0.9.2:8080`; with
`https://` it is asked over TLS), `system` the outlet.
"""

from __future__ import annotations

import aiohttp

from kumulus_controllers.fabric.fencing import FencingError, Power, Target

SECONDS = 5.0
"""At most so long does one request take."""
ANSWER_MAX = 64
"""Bytes that are read of an answer."""
STATES = {"on": Power.ON, "off": Power.OFF}


class Strip:
    """See `Fencer`, which says what each verb promises."""

    async def power(self, target: Target) -> Power:
        """Asked now; what the strip says and we do not know is `Unknown`, never `Off`."""
        return STATES.get(await _ask("GET", target), Power.UNKNOWN)

    async def off(self, target: Target) -> None:
        """Off already: the strip does nothing, and that is well."""
        await _ask("PUT", target, "off")


async def _ask(verb: str, target: Target, body: str | None = None) -> str:
    account = {"Authorization": aiohttp.encode_basic_auth(target.username, target.password)}
    strip = target.bmc.address if target.bmc.address.startswith("https://") else f"http://{target.bmc.address}"
    try:
        async with (
            aiohttp.ClientSession(headers=account, timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
            session.request(verb, f"{strip}/outlets/{target.bmc.system}", data=body, allow_redirects=False) as answer,
        ):
            said = await answer.content.read(ANSWER_MAX)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise FencingError(
            f"The power strip does not answer ({type(error).__name__}).", reason="StripUnreachable"
        ) from error
    if answer.status in (401, 403):
        raise FencingError("The power strip refuses the user or the password.", reason="StripRefuses")
    if answer.status >= 300:
        raise FencingError(f"The power strip answers {answer.status}.", reason="StripFails")
    return said.decode(errors="replace").strip().lower()


strip = Strip()
