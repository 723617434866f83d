"""Scenes, photographs and their folders."""
