"""Pools that are directories: qcow2 files on a local or shared file system."""
