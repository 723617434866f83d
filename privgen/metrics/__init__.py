"""Quality, detection and what pictures show."""
