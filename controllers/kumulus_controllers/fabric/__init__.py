"""Hosts: their namespaces and credentials, whether they are alive, what they have."""
