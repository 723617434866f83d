"""Files in and out: images with their metadata, atomic writes, batches, journals."""
