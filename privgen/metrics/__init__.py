"""Measure the quality of images, what they show, and which of them are hallucinated."""
