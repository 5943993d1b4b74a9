"""Running machines on this host: one small protocol and its drivers."""
