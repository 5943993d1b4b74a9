"""Placement: filter, score, reserve. Pure: no I/O, no clock, no awaiting."""
