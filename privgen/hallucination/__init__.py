"""Sampling that hallucinates less: score amplification, learned variance, rejection."""
