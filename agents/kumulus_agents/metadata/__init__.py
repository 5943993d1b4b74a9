"""Metadata: what a guest may ask of itself at 169.254.169.254, answered by a process of its own on each host."""
