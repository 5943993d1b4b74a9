"""Storage on a host: drivers, fetching, inspecting, converting."""
