"""Attacks that take marks and perturbations out: filters, denoisers, and models that draw the image again."""
