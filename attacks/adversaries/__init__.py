"""Adversaries: methods that learn a subject from images, and so what protection is tested with."""
