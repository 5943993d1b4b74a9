"""Whole images between hosts, over TLS that both sides prove themselves with (docs/adr/0011)."""
