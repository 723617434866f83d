"""Attacks by generative models and denoisers that regenerate the image."""
