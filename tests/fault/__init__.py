"""Faults of all kinds, too slow or too wide for every run: `make fault`."""
