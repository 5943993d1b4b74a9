"""Pools on hosts, and images in pools."""
