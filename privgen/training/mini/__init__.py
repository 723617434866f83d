"""Training of mini's own networks."""
