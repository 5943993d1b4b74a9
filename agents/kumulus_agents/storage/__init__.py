"""Disks and images on this host: one small protocol, its drivers, and the way of an image from the net into a pool."""
