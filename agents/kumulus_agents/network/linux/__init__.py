"""The driver `linux`: bridge, VXLAN, nftables and dnsmasq, with nothing that a distribution does not have."""
