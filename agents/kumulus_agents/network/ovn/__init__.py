"""Networks by Open vSwitch and OVN: this host's own northbound database, and tunnels of Geneve between hosts."""
