"""The kinds of Kumulus: pydantic models, one module a group. No I/O."""
