"""Events: every change of what users see, as CloudEvents, to whoever asked for them (`docs/adr/0043-events.md`)."""
