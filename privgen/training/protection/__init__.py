"""Training of the networks that protect images."""
