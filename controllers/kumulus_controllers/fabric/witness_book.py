"""What witnesses say of hosts that are silent, for who decides by it. In memory: it is asked for anew after a restart."""

from __future__ import annotations

from collections.abc import Callable

from kumulus_controllers.fabric.witness_plan import Hearing


class WitnessBook:
    """Written by the reconciler of witnesses alone."""

    def __init__(self) -> None:
        self._hearings: dict[str, Hearing] = {}
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, changed: Callable[[str], None]) -> None:
        """Have `changed` called with the name of a host of which something else is said."""
        self._listeners.append(changed)

    def hearing(self, host: str) -> Hearing | None:
        """What is said of the host; None: it is not asked about."""
        return self._hearings.get(host)

    def asked(self, *, besides: str) -> int:
        """About how many other hosts is asked."""
        return len(self._hearings) - (besides in self._hearings)

    def put(self, host: str, hearing: Hearing) -> None:
        """This is said now."""
        self._hearings[host] = hearing
        self._tell(host)

    def drop(self, host: str) -> None:
        """It is not asked about any more."""
        if self._hearings.pop(host, None) is not None:
            self._tell(host)

    def _tell(self, host: str) -> None:
        for changed in self._listeners:
            changed(host)
