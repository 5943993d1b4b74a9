"""How long tests wait before they give up."""

PATIENCE = 4.0
"""How many times the seconds that a test names may pass. What a test names is what a quiet machine may take; a deadline says
that something never happens, not that a machine that does much else is slow."""
