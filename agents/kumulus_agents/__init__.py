"""What runs on a host: the agent and its drivers."""
