"""Tenant networks: addresses, interfaces, groups, and what each host has to know of a network."""
