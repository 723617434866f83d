"""Training of the networks that write and read marks."""
