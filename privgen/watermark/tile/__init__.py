"""The carrier `tile`: a keyed, periodic mark in pixels that survives crops, borders, turns, scaling and mirroring.

`pattern.pattern_of` makes the pattern of a key, `embed.mark_image` writes it into an image, `search.detect_tiles`
finds it and reads its bits. No network is needed.
"""
