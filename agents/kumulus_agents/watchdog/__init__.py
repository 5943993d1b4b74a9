"""The watchdog of a host that ends its own machines when it cannot renew its Lease (ADR 44)."""
