"""Services of the platform: each a module that a cloud may do without. The core does not know that they are there."""
