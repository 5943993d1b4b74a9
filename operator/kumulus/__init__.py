"""Kumulus: an infrastructure cloud whose API is Kubernetes. This package is the core every process shares."""
