"""Attacks by those who know the method, or have collected marked images."""
