"""Machines: from what a tenant wrote to a work order on a host, and back into a status."""
