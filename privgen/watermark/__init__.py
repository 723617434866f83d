"""Keys, marks and their detection."""
