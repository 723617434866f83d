"""Attacks by adversaries who know this watermark: its extractor, its autoencoder, or images that carry it."""
