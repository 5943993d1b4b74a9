"""Attacks, and that they fail."""
