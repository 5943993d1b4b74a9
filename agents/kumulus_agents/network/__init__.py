"""Networks of tenants on a host, and their drivers."""
