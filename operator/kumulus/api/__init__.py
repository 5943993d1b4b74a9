"""The kinds of Kumulus: pydantic models, a module a group; what is a noun of its own in one has a module. No I/O."""
