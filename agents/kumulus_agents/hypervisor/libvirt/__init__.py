"""Domains of libvirt and QEMU. Nothing outside this package imports `libvirt`."""
