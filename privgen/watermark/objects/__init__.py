"""Marks of objects: one key for each object of an image, written inside its mask, and found without one.

`write.mark_objects` writes the marks, and `read.locate` says which part of an image belongs to which key. The carrier
is the tile of `privgen.watermark.tile`, smaller than for whole images. No network is needed.
"""
