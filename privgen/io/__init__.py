"""Files: images with their metadata, atomic writes, batches, journals, caches and fingerprints."""
