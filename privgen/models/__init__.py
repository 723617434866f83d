"""Network classes, and the embedded models."""
