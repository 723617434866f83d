"""Diffusers pipelines that put the core to work."""
